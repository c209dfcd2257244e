"""What using a model is predicted to take: against what small models compute, and by the commands' --dry-run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniature
import pytest
import small
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from openblip.checkpoints.convert import Format, convert_model
from openblip.checkpoints.outline import outline
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.checkpoints.stored import count_parameters
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.gpus import GPUS
from openblip.generation.config import DecodeConfig
from openblip.models import products
from openblip.models.blip import Blip, blip_config
from openblip.models.flops import FlopCounterMode
from openblip.tasks.registry import adapt
from openblip.tasks.usage import ModelCosts, Work, model_costs, usage

WRITTEN = DecodeConfig(num_beams=3, max_new_tokens=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "blip", StoredModel(small.model(), small.tokenizer(), {"prompt": "a "}))
    return tmp_path / "blip"


def costs_of(model: Any, **options: Any) -> ModelCosts:
    return model_costs(adapt(StoredModel(model, None, {})), torch.float32, batch=2, text_tokens=6, **options)


def test_arithmetic_is_what_a_real_model_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a hundredth, attention written out as plain products."""
    monkeypatch.setattr(products, "_prefers_onednn", lambda: False)
    real = small.model()
    adapter: Any = adapt(StoredModel(real, small.tokenizer()))
    with torch.device("meta"):
        empty = Blip(real.config)
    found = costs_of(empty)
    pixels = torch.zeros(2, 3, small.PIXELS, small.PIXELS, dtype=torch.uint8)
    ids, mask = torch.ones(2, 6, dtype=torch.int64), torch.ones(2, 6, dtype=torch.bool)

    def counted(run: Any) -> float:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return float(counter.get_total_flops())

    embeds = adapter.encode(pixels)
    memory = adapter.remember(embeds)
    seen = counted(lambda: (adapter.remember(adapter.encode(pixels)), adapter.image_features(embeds)))
    assert 2 * found.see == pytest.approx(seen, rel=0.01)
    assert 2 * found.read == pytest.approx(counted(lambda: adapter.match(ids, mask, memory)), rel=0.01)
    assert 2 * found.embed == pytest.approx(counted(lambda: adapter.text_features(ids, mask)), rel=0.01)
    written = counted(lambda: real.decoder(ids, mask, memory=memory))
    assert 12 * found.token == pytest.approx(written, rel=0.01)
    assert found.parameters == count_parameters(real)
    assert found.weights == pytest.approx(4 * found.parameters, rel=0.01)  # and a few buffers


def test_time_memory_and_cards() -> None:
    with torch.device("meta"):
        model = Blip(blip_config("nano", vocab_size=90, image_size=32))
    costs = costs_of(model)
    work = Work(name="captions", costs=costs, images=100, written=100, decode=WRITTEN)
    made = usage([work], GPUS["h100"])
    assert [phase.name for phase in made.phases] == ["captions: images", "captions: writing"]
    assert made.tflop * 1e12 == pytest.approx(100 * (costs.see + 3 * 16 * costs.token))
    # So few rows leave a card's arithmetic idle: each of the 50 batches' 16 steps reads the decoder.
    least = 50 * 16 * costs.writer / (3350e9 * 0.6)
    assert least < made.phases[1].seconds < 2 * least
    assert usage([work], GPUS["h100"], gpus=4).hours == pytest.approx(made.hours / 4)
    images = usage([replace(work, written=0)], GPUS["h100"])
    half = usage([replace(work, written=0, costs=replace(costs, dtype=torch.bfloat16))], GPUS["h100"])
    assert images.hours == pytest.approx(half.hours * 989 / 67)
    assert made.fits
    assert not usage([work], replace(GPUS["h100"], gib=1.0)).fits
    with pytest.raises(UserError, match="--mfu must be above 0"):
        usage([work], GPUS["h100"], mfu=0.0)


@pytest.mark.parametrize("form", ["openblip", "blip", "transformers"])
def test_an_outline_has_the_sizes_of_the_model_and_no_values(form: Format, tmp_path: Path) -> None:
    folder = place = tmp_path / "blip"
    sizes = blip_config("nano", vocab_size=small.tokenizer().vocab_size, image_size=32)
    sizes = replace(sizes, vision=replace(sizes.vision, stem="patch"))  # as others' formats have it
    save_model(folder, StoredModel(Blip(sizes), small.tokenizer()))
    if form == "openblip":
        whole = open_model(folder)
        (folder / "model.safetensors").unlink()  # no weights are read
    else:
        place = tmp_path / ("model.pth" if form == "blip" else "theirs")
        convert_model(open_model(folder), place, to=form, part=None if form == "blip" else "caption")
        whole = open_model(place, tokenizer=small.tokenizer() if form == "blip" else None)
    found = outline(place)
    assert found.model.config == whole.model.config
    assert all(value.is_meta for value in found.model.parameters())


def test_an_evaluation_is_predicted_without_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = miniature.coco(tmp_path).parent
    monkeypatch.setenv("OPENBLIP_DATA", str(root))
    (folder / "model.safetensors").write_bytes(b"no weights")
    words = ["evaluate", "coco:test", "--model", str(folder)]
    assert main([*words, "--dry-run", "--gpu", "l40s", "--gpus", "2", "--out", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["gpu"], told["gpus"], told["dtype"], told["images"]) == ("L40S", 2, "float32", 1)
    assert told["texts"] == len(
        json.loads((root / "coco/annotations/coco_karpathy_test.json").read_text())[0]["caption"]
    )
    assert {"retrieval: images", "captions: writing", "captions: likelihoods"} <= told["seconds"].keys()
    assert told["fits"]
    assert min(told["hours"], told["tflop"]) > 0
    assert not (tmp_path / "out").exists()
    assert main([*words, "--gpu", "l40s"]) == 2
    assert "--gpu is for --dry-run" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--gpu", "l40"]) == 2
    assert 'did you mean "l40s"' in capsys.readouterr().err


def test_capfilt_is_predicted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        small.make_image(number).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "caption": "a red bus on a road"} for number in range(3)]
    data = tmp_path / "web.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    words = ["capfilt", str(data), str(tmp_path / "out"), "--filter", str(folder)]
    assert main([*words, "--dry-run"]) == 0
    judged = json.loads(capsys.readouterr().out)
    assert main([*words, "--captioner", str(folder), "--num-captions", "4", "--dry-run"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert (judged["images"], judged["texts"], judged["dtype"]) == (3, 3, "bfloat16")
    assert both["parameters"] == judged["parameters"]  # one model is both, and sees once
    assert both["seconds"]["filter: images"] == judged["seconds"]["filter: images"]
    assert "captioner: writing" in both["seconds"]
    assert "captioner: images" not in both["seconds"]
    assert both["tflop"] > judged["tflop"]
    assert not (tmp_path / "out").exists()
    assert main([*words, "--mfu", "0.3"]) == 2
    assert "--mfu is for --dry-run" in capsys.readouterr().err
