"""What a run is predicted to take, against what small models have and compute, and the published sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_blip2 import PIXELS, write_language
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from openblip.checkpoints.store import StoredModel, save_model
from openblip.checkpoints.stored import count_parameters
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.gpus import GPUS
from openblip.core.interrupt import RESUME
from openblip.core.tokenizer import TextTokenizer
from openblip.models import products
from openblip.models.blip import Blip, blip_config
from openblip.models.flops import FlopCounterMode
from openblip.models.language_sizes import LANGUAGE_SIZES
from openblip.recipes.catalogue import RECIPES
from openblip.recipes.papers import RUNS
from openblip.tasks.config import RunConfig
from openblip.tasks.cost import predicted_cost
from openblip.tasks.plan import largest_batch, plan
from openblip.tasks.sketch import sketch

TOWER = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_language(tmp_path_factory.mktemp(kind), kind) for kind in ("opt", "t5")}  # type: ignore[arg-type]


def small(name: str, languages: dict[str, Path], batch: int = 4, **changes: Any) -> RunConfig:
    """A recipe in small sizes; "name, kind" has a language model of that kind."""
    recipe, _, kind = name.partition(", ")
    options = {"model": "nano"} | ({"language": str(languages[kind])} if kind else {})
    if recipe == "blip2-stage1":
        options["vision"] = TOWER
    config = RECIPES[recipe].config(("DATA",), **options)
    if config.family == "blip2":
        vision = replace(config.vision, source=TOWER, image_size=PIXELS, dtype="float32")
        config = replace(config, vision=vision, language=replace(config.language, dtype="float32"))
    return replace(config, batch_size=batch, max_length=16, **changes)


@pytest.mark.parametrize(
    "name",
    [
        *("blip-pretrain", "blip-caption", "blip-retrieval", "blip-vqa", "blip-nlvr", "blip-visdial"),
        "blip2-stage1",
        *("blip2-stage2, opt", "blip2-stage2, t5", "blip2-vqa, opt", "blip2-vqa, t5"),
    ],
)
def test_arithmetic_is_what_a_real_step_computes(
    name: str, languages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a hundredth: a real step on a CPU is counted, its attention written out as plain products.

    Its linear layers are torch's, as on a GPU: oneDNN's are recomputed to the last, torch's but for the last.
    """
    monkeypatch.setattr(products, "_prefers_onednn", lambda: False)
    config = small(name, languages)
    step, _ = sketch(config)
    found = predicted_cost(step, sketch(config)[1])
    real, make_batch = sketch(config)
    trained = sum(value.numel() for value in real.parameters() if value.requires_grad)
    assert found.trained_parameters == trained
    assert found.frozen_parameters == sum(value.numel() for value in real.parameters()) - trained
    real.to_empty(device="cpu")  # tied weights are not tied any more, which is the same arithmetic
    torch.manual_seed(0)
    for value in (*real.parameters(), *real.buffers()):
        if value.is_floating_point():
            nn.init.normal_(value, std=0.02)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real(make_batch())["loss"].backward()
    assert found.flops + found.attention_flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_recomputing_takes_more_arithmetic_and_less_memory(languages: dict[str, Path]) -> None:
    """The tower that is fine-tuned with the rest is recomputed too."""
    config = small("blip2-caption", languages, 16)
    config = replace(config, vision=replace(config.vision, image_size=224))  # of few pixels little is kept
    config = replace(config, language=replace(config.language, source=str(languages["opt"])))
    recomputed = predicted_cost(*sketch(config))
    kept = predicted_cost(*sketch(replace(config, train=replace(config.train, gradient_checkpointing=0.0))))
    assert kept.trained_parameters == recomputed.trained_parameters > 5_000_000  # the tower's are among them
    assert recomputed.flops > 1.2 * kept.flops
    assert recomputed.peak < 0.8 * kept.peak


def test_a_starting_model_counts_by_its_description(tmp_path: Path) -> None:
    words = TextTokenizer.train(["a red bus on a long road"] * 3, vocab_size=60)
    model = Blip(blip_config("nano", vocab_size=words.vocab_size, image_size=PIXELS))
    save_model(tmp_path / "model", StoredModel(model, words))
    (tmp_path / "model" / "model.safetensors").unlink()  # no weights are read
    config = RECIPES["blip-caption"].config(("DATA",), model=str(tmp_path / "model"))
    made = plan(config, GPUS["h100"], gpus=4, samples=1000)
    assert made.trained_parameters == count_parameters(model.part(encoder=False, decoder=True))
    assert (made.global_batch, made.steps) == (128, 5 * 8)
    assert made.hours == pytest.approx(made.steps * made.step_tflop / 989 / 0.4 / 3600)
    assert made.buckets_gib == pytest.approx(4 * made.trained_parameters / 2**30)
    with pytest.raises(UserError, match="is of blip, and the run of blip2"):
        plan(RECIPES["blip2-retrieval"].config(("DATA",), model=str(tmp_path / "model")), GPUS["h100"])


def test_what_does_not_fit_is_told(languages: dict[str, Path]) -> None:
    config = small("blip-retrieval", languages, 4096)
    tiny = replace(GPUS["rtx4090"], gib=4.0)
    made = plan(config, tiny)
    assert not made.fits
    most = largest_batch(config, made)
    assert 0 < most < 4096
    assert plan(replace(config, batch_size=most), tiny).memory_gib == pytest.approx(4.0, rel=0.05)


def test_what_is_not_predicted_is_refused(languages: dict[str, Path]) -> None:
    config = small("blip-caption", languages)
    with pytest.raises(UserError, match="self-critical"):
        plan(replace(config, scst=replace(config.scst, samples=5)), GPUS["h100"])
    with pytest.raises(UserError, match="sharding"):
        plan(replace(config, train=replace(config.train, sharding="fsdp2")), GPUS["h100"])
    with pytest.raises(UserError, match=r"^--mfu must be above 0 and at most 1, not 1.5$"):
        plan(config, GPUS["h100"], mfu=1.5)
    with pytest.raises(UserError, match=r"^--gpus must be at least 1, not 0$"):
        plan(config, GPUS["h100"], gpus=0)
    with pytest.raises(UserError, match=r"^--samples cannot be negative, and is -1$"):
        plan(config, GPUS["h100"], samples=-1)
    with pytest.raises(UserError, match="sizes of someone/blip are not known"):
        plan(replace(config, model="someone/blip"), GPUS["h100"])
    unknown = RECIPES["blip2-stage2"].config(("DATA",), model="", language="someone/llm")
    with pytest.raises(UserError, match="sizes of someone/llm are not known"):
        plan(replace(unknown, vision=replace(unknown.vision, source=TOWER)), GPUS["h100"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without data, weights, a model or a folder."""
    assert main(["train", "small-pretrain", "--dry-run", "--gpu", "a100-40", "--gpus", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["gpu"], told["gpus"], told["steps"], told["fits"]) == ("A100 40 GB", 2, 1000, True)
    assert 0 < told["step_tflop"] < 1
    assert main(["train", "small-nlvr", "--model", "nano", "--dry-run", "--set", "train.max_steps=null"]) == 0
    shown = capsys.readouterr().out
    assert "small-nlvr, predicted" in shown
    assert "1 x H100 SXM" in shown
    for words, message in (
        (["photos/", "--out", "x", "--gpu", "h100"], "--gpu is for --dry-run"),
        (["--dry-run", "--gpu", "h10"], 'did you mean "h100"'),
        ([], "needs --out"),
    ):
        assert main(["train", "small-pretrain", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_card_for_no_batch_at_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(GPUS, "rtx4090", replace(GPUS["rtx4090"], gib=2.0))
    assert main(["train", "small-nlvr", "--model", "nano", "--dry-run", "--gpu", "rtx4090"]) == 0
    assert "GiB of 2.0: does not fit, and not even a batch of 1 does" in capsys.readouterr().out


def test_what_is_stopped_before_it_began_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("openblip.cli.plan.show_plan", stop)
    monkeypatch.setattr("openblip.tasks.training.run_training", stop)
    assert main(["train", "small-pretrain", "--dry-run"]) == 130
    assert capsys.readouterr().err == "openblip: stopped\n"
    assert main(["train", "small-pretrain", "world:train", "--out", "run"]) == 130
    assert capsys.readouterr().err == f"openblip: stopped; {RESUME}\n"


PUBLISHED = {
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "google/flan-t5-xl": 2_849_757_184,
    "google/flan-t5-xxl": 11_135_332_352,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_language_models_have_their_published_sizes(name: str) -> None:
    with torch.device("meta"):
        assert count_parameters(LANGUAGE_SIZES[name]()) == PUBLISHED[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blip-pretrain-14m", "blip2-stage1-vit-g"])
def test_runs_of_the_papers_are_predicted(name: str) -> None:
    """Arithmetic of an image and parameters as the benchmarks have stored them of other code."""
    recipe = RUNS[name]
    assert recipe.paper is not None
    config = recipe.config(recipe.data)
    made = plan(config, GPUS[recipe.paper.card], gpus=recipe.paper.gpus, samples=recipe.paper.samples)
    assert made.fits
    assert made.global_batch == {"blip-pretrain-14m": 2880, "blip2-stage1-vit-g": 1680}[name]
    if name.startswith("blip2"):
        # The tokenizer that a Q-Former is trained with has [ENC] too: a row of 768 and a bias more than published.
        assert made.trained_parameters == 186_705_470 + 768 + 1
        assert made.step_tflop / made.batch == pytest.approx(0.70, abs=0.02)
    else:
        assert made.steps == 20 * 5278  # 15.2M pairs, 2,880 a step
