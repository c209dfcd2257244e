"""Whole runs of both stages on the scene world: losses, resume, evaluation, features from disk, fine-tuning."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kinds_of_towers import make_transformers
from safetensors import safe_open
from small_blip2 import PIXELS, Kind, spread, write_language

from openblip.checkpoints.blip2_parts import open_tower
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core import compute
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.data.transform_config import ImageTransformConfig
from openblip.data.transforms import ImageTransform
from openblip.generation.config import DecodeConfig
from openblip.models.blip import Blip, blip_config
from openblip.models.blip2 import Blip2
from openblip.models.configs import QFORMERS, LanguageConfig, QFormerSettings, TowerConfig, as_tower
from openblip.models.tower import make_tower
from openblip.models.tower_parts import block_list
from openblip.objectives.blip2 import Blip2Stage1
from openblip.objectives.configs import Stage1Config
from openblip.recipes.blip2 import blip2_caption, blip2_retrieval, blip2_stage1, blip2_stage2, blip2_vqa
from openblip.recipes.small import small_stage1, small_stage2
from openblip.tasks.config import RunConfig, as_sources, load_run_config
from openblip.tasks.families.blip2_build import _unfreeze
from openblip.tasks.feature_cache import FeatureCache, describe_tower
from openblip.tasks.feature_files import shard_files
from openblip.tasks.features import Cached, cache_features
from openblip.tasks.pairs import Stage1Step
from openblip.tasks.registry import FAMILIES, TASKS, adapt
from openblip.tasks.step import depth_of_layers
from openblip.tasks.task import RunData
from openblip.tasks.training import evaluate_model, run_training, set_up
from openblip.training.config import TrainConfig

DATA = f"world:train?n=24&size={PIXELS}"
TRAIN = TrainConfig(
    max_steps=4, learning_rate=1e-3, warmup_steps=1, schedule="constant", evaluate_every_epochs=0, log_every=1,
    checkpoint_every=2, device="cpu", precision="float32", trackers=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BLIP of ours whose vision tower is the frozen one."""
    folder = tmp_path_factory.mktemp("blip") / "model"
    tokenizer = TextTokenizer.train(["a red circle left of a blue square"], vocab_size=60)
    torch.manual_seed(0)
    blip = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=PIXELS))
    save_model(folder, StoredModel(blip, tokenizer))
    return f"openblip:{folder}"


def stage1(tower: str, **changes: Any) -> RunConfig:
    config = small_stage1((DATA,), model="nano", vision=tower, validation=(f"world:val?n=6&size={PIXELS}",))
    settings: dict[str, Any] = {"batch_size": 8, "num_workers": 0, "train": TRAIN, "vocab_size": 200, "rerank_k": 3}
    return replace(config, **{**settings, **changes})


@pytest.fixture(scope="module")
def first(tower: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "stage1"
    run_training(stage1(tower), out, show=False)
    return out


def losses(out: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if k.startswith(("loss", "itm_acc", "grad"))}
        for r in records
        if r["split"] == "train"
    ]


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_soft_prompts_start_from_the_captions(first: Path, tmp_path: Path, kind: Kind) -> None:
    """The projection alone is fitted: to the captions of images, at the scale of embeddings, once for a run."""
    language = write_language(tmp_path / "language", kind)
    config = small_stage2((DATA,), model=str(first / "model"), language=str(language))
    config = replace(config, language=replace(config.language, dtype="float32"), fit_soft_prompts=True)
    models = []
    for fits in (False, True):
        torch.manual_seed(0)
        adapter, sources, training = set_up(replace(config, fit_soft_prompts=fits), tmp_path)
        models.append(adapter.model.eval())
        assert (training.begin is not None) == fits
    plain, fitted = models
    batches = list(Loader(sources, ImageTransform(ImageTransformConfig(image_size=PIXELS)), 8))
    assert training.begin is not None
    state = torch.get_rng_state()
    share = training.begin(batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 < share < 1
    same = dict(plain.named_parameters())
    for name, value in fitted.named_parameters():
        assert torch.equal(value, same[name]) != name.startswith("language_proj."), name
    images = torch.cat([batch.images for batch in batches])
    soft = fitted.soft_prompt(fitted.remember(fitted.encode_pixels(images))).mean(1)
    wanted = fitted.llm.hf.get_input_embeddings().weight.std().item()
    assert (soft - soft.mean(0)).std().item() == pytest.approx(wanted, rel=0.1)


def test_a_projection_that_is_there_is_not_fitted(first: Path, tmp_path: Path) -> None:
    language = write_language(tmp_path / "language", "opt")
    config = small_stage2((DATA,), model=str(first / "model"), language=str(language))
    config = replace(
        config, fit_soft_prompts=True, batch_size=8, train=replace(config.train, max_steps=1, checkpoint_every=1)
    )
    run_training(config, tmp_path / "run", show=False)
    model = str(tmp_path / "run" / "model")
    with pytest.raises(UserError, match="has its projection and keeps it; leave it out"):
        set_up(replace(config, model=model, language=LanguageConfig()), tmp_path)
    with pytest.raises(UserError, match="captions fit it"):
        set_up(replace(config, task="answering", prompt="{}"), tmp_path)


def test_a_tower_that_is_trained_starts_from_whole_weights(tower: str, tmp_path: Path) -> None:
    """A dtype is for a frozen tower; weights that were rounded to it would not be those of the source."""
    config = stage1(tower, unfreeze_vision=True)
    weights = open_model(tower.partition(":")[2]).model.vision.state_dict()
    model = set_up(replace(config, vision=replace(config.vision, dtype="bfloat16")), tmp_path)[0].model
    assert model.config.vision.dtype == "float32"
    found = model.vision.encoder.state_dict()
    same = [name for name in found if name.removeprefix("vit.") in {key.removeprefix("vit.") for key in weights}]
    assert len(same) > 10
    for name in same:
        value = found[name]
        assert any(torch.equal(value, weights[key]) for key in weights if key.endswith(name)), name


def test_a_run_goes_on_in_the_dtypes_that_it_began_with(
    tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine "auto" may be another dtype, of the frozen parts and of the training."""
    config = stage1(tower, train=replace(TRAIN, precision="auto"))
    config = replace(config, vision=replace(config.vision, dtype="auto"))
    short = replace(config, train=replace(config.train, max_steps=2))
    cpu = compute.this_cpu()
    for began in (False, True):
        monkeypatch.setattr(compute, "this_cpu", lambda fast=began: replace(cpu, bfloat16=fast))
        whole, parts = tmp_path / f"whole-{began}", tmp_path / f"parts-{began}"
        run_training(config, whole, show=False)
        run_training(short, parts, show=False)
        monkeypatch.setattr(compute, "this_cpu", lambda fast=not began: replace(cpu, bfloat16=fast))
        run_training(config, parts, resume=True, show=False)
        assert losses(parts) == losses(whole)
        assert open_model(parts / "model").model.config.vision.dtype == ("bfloat16" if began else "float32")
        assert "as the run began" in (parts / "log.txt").read_text()
        assert "as the run began" not in (whole / "log.txt").read_text()
    assert losses(parts) != losses(tmp_path / "whole-False")


def test_stage_1_trains_measures_and_saves(first: Path) -> None:
    found = losses(first)
    assert len(found) == 4
    assert set(found[0]) == {"loss", "loss_itc", "loss_itm", "loss_itg", "itm_accuracy", "grad_norm"}
    measured = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()][-1]
    for name in ("t2i_recall@1", "i2t_recall_itm@1", "itm_accuracy", "itg_perplexity"):
        assert name in measured
    stored = open_model(first / "model")
    assert stored.info["task"] == "pretraining"
    with safe_open(first / "checkpoints" / "step-00000004" / "model.safetensors", "pt") as checkpoint:
        assert not any(".vision.encoder" in key for key in checkpoint.keys())  # noqa: SIM118
    block = stored.model.qformer.qformer_blocks[0]
    assert not torch.equal(block.query_feed_forward.inner.weight, block.text_feed_forward.inner.weight)


def test_a_run_that_goes_on_is_the_unbroken_one(first: Path, tower: str, tmp_path: Path) -> None:
    config = stage1(tower)
    run_training(replace(config, train=replace(TRAIN, max_steps=2)), tmp_path / "r", show=False)
    run_training(config, tmp_path / "r", resume=True, show=False)
    assert losses(tmp_path / "r") == losses(first)
    assert load_run_config(tmp_path / "r" / "config.json").vision.source == tower
    with pytest.raises(UserError, match="max_length"):
        run_training(replace(config, max_length=20), tmp_path / "r", resume=True, show=False)


def test_other_frozen_parts_do_not_go_on(first: Path, tower: str, tmp_path: Path) -> None:
    stored = open_model(tower.partition(":")[2])
    spread(stored.model, 0.1)
    save_model(tmp_path / "other", StoredModel(stored.model, stored.tokenizer))
    copy = tmp_path / "r"
    run_training(stage1(tower, train=replace(TRAIN, max_steps=2)), copy, show=False)
    described = json.loads((copy / "config.json").read_text())
    for part in (described["run"]["vision"], described["model"]["vision"]):
        part["source"] = f"openblip:{tmp_path / 'other'}"
    (copy / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="frozen parts"):
        run_training(stage1(f"openblip:{tmp_path / 'other'}"), copy, resume=True, show=False)


SHARD = 10.5 * 17 * 64 * 4 / 1e6
"""MB of ten images' features"""


def fill(tower: str, folder: Path, data: str = DATA, **options: Any) -> Cached:
    return cache_features([open_source(data)], open_tower(as_tower(tower)), folder, num_workers=0, **options)


def test_training_from_features_gives_the_same_losses(tower: str, tmp_path: Path) -> None:
    plain = stage1(tower, validation=())
    plain = override(plain, ["transform.crop_scale=none"])
    run_training(plain, tmp_path / "plain", show=False)
    assert fill(tower, tmp_path / "f", shard_mb=SHARD, batch_size=4).images == 24
    assert len(shard_files(tmp_path / "f")) == 3
    run_training(replace(plain, features=(str(tmp_path / "f"),)), tmp_path / "cached", show=False)
    for one, other in zip(losses(tmp_path / "plain"), losses(tmp_path / "cached"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_features_go_on_where_they_stopped(tower: str, tmp_path: Path) -> None:
    fill(tower, tmp_path / "f", shard_mb=SHARD, batch_size=5)
    shards = shard_files(tmp_path / "f")
    assert [shard.name for shard in shards] == [f"features-{first:09d}.safetensors" for first in (0, 10, 20)]
    before = [shard.read_bytes() for shard in shards]
    shards[1].unlink()
    shards[2].unlink()
    assert fill(tower, tmp_path / "f", shard_mb=SHARD, batch_size=5).computed == 14
    assert [shard.read_bytes() for shard in shard_files(tmp_path / "f")] == before
    assert fill(tower, tmp_path / "f", shard_mb=SHARD, batch_size=5).computed == 0
    cache = FeatureCache.open([tmp_path / "f"], describe_tower(open_tower(as_tower(tower))))
    assert len(cache.rows) == 24
    assert cache.shape == (17, 64)
    shards[1].unlink()
    assert fill(tower, tmp_path / "f", shard_mb=SHARD / 2, batch_size=5).computed == 10  # of another size, too
    assert len(shard_files(tmp_path / "f")) == 4


def test_features_of_another_tower_are_refused(tower: str, tmp_path: Path) -> None:
    fill(tower, tmp_path / "f")
    with pytest.raises(UserError, match=r"other features: its drop_layers is 0, not 1; cache them again"):
        run_training(stage1(f"{tower}@1", features=(str(tmp_path / "f"),)), tmp_path / "r", show=False)
    with pytest.raises(UserError, match="holds no features"):
        run_training(stage1(tower, features=(str(tmp_path),)), tmp_path / "r2", show=False)
    with pytest.raises(UserError, match="other features: its drop_layers"):
        fill(f"{tower}@1", tmp_path / "f")
    with pytest.raises(UserError, match="stands twice"):
        FeatureCache.open([tmp_path / "f", tmp_path / "f"], describe_tower(open_tower(as_tower(tower))))
    other = stage1(tower, features=(str(tmp_path / "f"),), validation=())
    other = override(other, [f'sources=[{{"path": "world:test?n=16&size={PIXELS}"}}]'])
    with pytest.raises(UserError, match=r"broken as a whole.*no features"):
        run_training(other, tmp_path / "r3", show=False)


def test_features_of_a_tower_that_was_fine_tuned(first: Path, tower: str, tmp_path: Path) -> None:
    stored = open_model(first / "model")
    _unfreeze(stored.model)
    save_model(tmp_path / "m", stored)
    kept = open_model(tmp_path / "m").model.vision
    cache_features([open_source(DATA)], kept, tmp_path / "f", num_workers=0)
    config = stage1(tower, model=str(tmp_path / "m"), features=(str(tmp_path / "f"),), validation=())
    assert set_up(config, tmp_path / "r")[2].find_unused_parameters, "DDP would wait for the tower's gradient"
    run_training(config, tmp_path / "r", show=False)
    after = open_model(tmp_path / "r" / "model").model.vision
    assert after.config.trained
    for name, value in kept.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_stage_2_from_stage_1(first: Path, tmp_path: Path, kind: Kind) -> None:
    llm = write_language(tmp_path / "llm", kind)
    config = small_stage2(
        (DATA,), model=str(first / "model"), language=str(llm),
        validation=(f"world:val?n=4&size={PIXELS}",),
    )  # fmt: skip
    prompt = "a photo of" if kind == "opt" else ""
    config = replace(
        config, batch_size=8, num_workers=0, train=TRAIN, prompt=prompt, decode=DecodeConfig(max_new_tokens=6)
    )
    run_training(config, tmp_path / "r", show=False)
    measured = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()][-1]
    assert {"CIDEr", "perplexity"} <= set(measured)
    assert set(losses(tmp_path / "r")[0]) == {"loss", "loss_lm", "grad_norm"}
    stored = open_model(tmp_path / "r" / "model")
    begun = open_model(first / "model").model
    assert stored.tokenizer is None
    assert stored.model.config.qformer.num_queries == begun.config.qformer.num_queries
    moved = (stored.model.qformer.queries - begun.qformer.queries).abs().max()
    assert 0 < moved < 0.1  # it began from stage 1
    again = replace(config, train=replace(TRAIN, max_steps=2))
    run_training(again, tmp_path / "r2", show=False)
    run_training(config, tmp_path / "r2", resume=True, show=False)
    assert losses(tmp_path / "r2") == losses(tmp_path / "r")


def test_questions_are_read_by_the_qformer_too(first: Path, tmp_path: Path) -> None:
    llm = write_language(tmp_path / "llm", "opt")
    data = (f"world:train?n=12&size={PIXELS}",)
    config = blip2_vqa(data, model=str(first / "model"), language=str(llm), validation=data)
    config = replace(
        config, vision=TowerConfig(), batch_size=4, num_workers=0, decode=DecodeConfig(max_new_tokens=4),
        train=replace(TRAIN, max_steps=2, layer_decay=0.9), validation_samples=3,
    )  # fmt: skip
    run_training(config, tmp_path / "r", show=False)
    stored = open_model(tmp_path / "r" / "model")
    assert stored.tokenizer is not None
    assert stored.model.config.vision.trained
    metrics, records = evaluate_model(config, adapt(stored))
    assert 0 <= metrics["accuracy_generated"] <= 1
    assert {"question", "generated", "answers"} <= set(records[0])
    vision = open_model(first / "model").model.vision.state_dict()
    assert any(not torch.equal(v, vision[k]) for k, v in stored.model.vision.state_dict().items())


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_behind_stage2_the_language_model_alone_reads_the_questions(
    first: Path, tmp_path: Path, kind: Kind
) -> None:
    """As with published models, whose Q-Former has no text side."""
    llm = write_language(tmp_path / "llm", kind)
    short = {"batch_size": 4, "num_workers": 0, "train": replace(TRAIN, max_steps=2)}
    second = replace(small_stage2((DATA,), model=str(first / "model"), language=str(llm)), **short)
    run_training(second, tmp_path / "second", show=False)
    start = tmp_path / "second" / "model"
    assert open_model(start).tokenizer is None
    data = (f"world:train?n=12&size={PIXELS}",)
    config = blip2_vqa(data, model=str(start), validation=data)
    config = replace(config, vision=TowerConfig(), unfreeze_vision=False, validation_samples=3, **short)
    config = replace(config, decode=DecodeConfig(max_new_tokens=4))
    run_training(config, tmp_path / "r", show=False)
    assert all(0 < row["loss_lm"] < 20 for row in losses(tmp_path / "r"))
    before, stored = open_model(start).model.state_dict(), open_model(tmp_path / "r" / "model")
    changed = {k for k, v in stored.model.state_dict().items() if not torch.equal(v, before[k])}
    assert any(name.startswith("language_proj") for name in changed)
    adapter = adapt(stored)
    assert not adapter.reads_questions
    metrics, records = evaluate_model(config, adapter)
    assert 0 <= metrics["accuracy_generated"] <= 1
    assert records[0]["question"]
    (told,) = FAMILIES["blip2"].build(config, [], tmp_path).begun
    assert "reads no text: the language model alone reads the questions" in told


def test_retrieval_and_captions_are_fine_tuned(first: Path, tmp_path: Path) -> None:
    config = blip2_retrieval((DATA,), model=str(first / "model"))
    config = replace(config, vision=TowerConfig(), batch_size=8, num_workers=0, train=replace(TRAIN, max_steps=2))
    config = replace(config, unfreeze_vision=False)
    assert config.stage1.use_image_ids
    run_training(config, tmp_path / "r", show=False)
    assert len(losses(tmp_path / "r")) == 2
    captions = blip2_caption((DATA,), model="m")
    assert (captions.task, captions.prompt, captions.unfreeze_vision) == ("captioning", "a photo of", True)


def test_the_rate_of_the_tower_alone_falls_by_layer(first: Path) -> None:
    """Tables 7 to 9: "Layer-wise learning rate decay for ViT"; LAVIS' blip2.py scales no other rate."""
    adapter = adapt(open_model(first / "model"))
    step = Stage1Step(Blip2Stage1(adapter.model, Stage1Config(), dec_id=adapter.tokenizer.dec_id))
    ids, depth = step.layer_ids(), adapter.model.vision.depth
    top = depth + 1
    assert {number for name, number in ids.items() if ".vision." not in name} == {top}
    blocks = [{ids[name] for name in ids if f".vision.encoder.vit.blocks.{i}." in name} for i in range(depth)]
    assert blocks == [{i + 1} for i in range(depth)]


@pytest.mark.parametrize("kind", ["CLIP", "DINOv2"])
def test_it_falls_in_towers_of_transformers_too(tmp_path: Path, kind: str) -> None:
    """Their blocks are `layers` and `layer`."""
    make_transformers(kind).save_pretrained(tmp_path)
    tower = make_tower(TowerConfig(source=f"hf:{tmp_path}", trained=True, drop_layers=1))
    step = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"vision": tower})})
    ids = depth_of_layers(step, tower.depth, None)
    found = block_list(tower.encoder)
    assert found is not None
    name, blocks = found
    assert len(blocks) == 2
    for number in range(2):
        assert {ids[key] for key in ids if f".{name}.{number}." in key} == {number + 1}
    assert {ids[key] for key in ids if ".embeddings." in key} == {0}


def test_the_papers_numbers() -> None:
    one, two = blip2_stage1(("a",)), blip2_stage2(("a",), model="m")
    assert (one.train.max_steps, two.train.max_steps) == (250_000, 80_000)
    assert one.train.betas == (0.9, 0.98)
    assert (one.train.learning_rate, two.train.min_learning_rate, one.train.warmup_steps) == (1e-4, 5e-5, 2000)
    assert one.batch_size * 16 == 1680
    assert two.batch_size * 16 == 1920
    assert (two.language.source, two.language.end) == ("facebook/opt-2.7b", "\n")
    assert (one.model, one.qformer, QFORMERS["base"].num_queries) == ("", QFormerSettings(), 32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": ()}, "no data source"),
        ({"task": "answering"}, "where the question goes"),
        ({"image_size": 64}, "is not read by family"),
        ({"image_size": 0}, "image_size .* cannot be 0"),
        ({"family": "blip"}, "is not read by family"),
        ({"features": ("f",), "unfreeze_vision": True}, "leave features or"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(blip2_stage1(("a",)), **changes)


def test_models_of_another_kind_are_refused(first: Path, tower: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no BLIP-2 model"):
        run_training(stage1(tower, model=tower.partition(":")[2]), tmp_path / "a", show=False)
    llm = write_language(tmp_path / "llm", "opt")
    config = small_stage2((DATA,), model=str(first / "model"), language=str(llm))
    run_training(
        replace(config, batch_size=8, num_workers=0, train=replace(TRAIN, max_steps=1)), tmp_path / "b", show=False
    )
    with pytest.raises(UserError, match="no heads for ITC"):
        run_training(stage1(tower, model=str(tmp_path / "b" / "model")), tmp_path / "c", show=False)


def test_frozen_parts_that_a_starting_model_would_not_take_are_refused(
    first: Path, tower: str, tmp_path: Path
) -> None:
    """They were passed over in silence, and the model went on with its own."""
    start = str(first / "model")
    other = tmp_path / "other"
    shutil.copytree(tower.partition(":")[2], other)
    with pytest.raises(UserError, match=r"has its vision part .* and keeps it; leave openblip:.*other out"):
        FAMILIES["blip2"].build(stage1(f"openblip:{other}", model=start), [], tmp_path)
    spelled = tower.replace("/model", "/../" + Path(tower).parent.name + "/model")
    FAMILIES["blip2"].build(stage1(spelled, model=start), [], tmp_path)  # the same folder
    opt, t5 = (str(write_language(tmp_path / kind, kind)) for kind in ("opt", "t5"))
    second = small_stage2((DATA,), model=start, language=opt)
    save_model(tmp_path / "second", FAMILIES["blip2"].build(second, [], tmp_path).stored)
    FAMILIES["blip2"].build(replace(second, model=str(tmp_path / "second")), [], tmp_path)
    with pytest.raises(UserError, match=r"has its language part .*opt and keeps it; leave .*t5 out"):
        FAMILIES["blip2"].build(small_stage2((DATA,), model=str(tmp_path / "second"), language=t5), [], tmp_path)


def test_a_starting_model_keeps_its_tokenizer(first: Path, tower: str, tmp_path: Path) -> None:
    for family, model in (("blip2", str(first / "model")), ("blip", tower.partition(":")[2])):
        config = RunConfig(family=family, sources=as_sources((DATA,)), model=model, tokenizer="train")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="has a tokenizer, whose ids it was trained on"):
            FAMILIES[config.family].build(config, [], tmp_path)


def test_an_objective_left_out_leaves_its_head_unused(first: Path, tower: str, tmp_path: Path) -> None:
    """Several processes have to know it."""
    for objectives, unused in ((("itc", "itm", "itg"), False), (("itc", "itg"), True)):
        config = stage1(tower, model=str(first / "model"))
        config = replace(config, stage1=replace(config.stage1, objectives=objectives))
        adapter = FAMILIES["blip2"].build(config, [], tmp_path)
        training = TASKS["pretraining"].train["blip2"](config, adapter, RunData([], tmp_path))
        assert training.find_unused_parameters == unused


def test_a_model_without_a_head_for_itg_is_fine_tuned_for_retrieval(
    first: Path, tower: str, tmp_path: Path
) -> None:
    """As those of transformers are; ITG cannot be trained with it."""
    stored = open_model(first / "model")
    sizes = replace(stored.model.config, qformer=replace(stored.model.config.qformer, writes=False))
    without = Blip2(sizes, stored.model.vision, None)
    without.load_state_dict(stored.model.state_dict(), strict=False)
    save_model(tmp_path / "m", StoredModel(without, stored.tokenizer))
    config = replace(stage1(tower, model=str(tmp_path / "m")), vision=TowerConfig())
    with pytest.raises(UserError, match=r"has no head for ITG.*stage1\.objectives=itc,itm"):
        run_training(config, tmp_path / "pretraining", show=False)
    run_training(replace(config, task="retrieval"), tmp_path / "retrieval", show=False)
    assert set(losses(tmp_path / "retrieval")[0]) == {"loss", "loss_itc", "loss_itm", "itm_accuracy", "grad_norm"}
    adapter = FAMILIES["blip2"].build(replace(config, task="retrieval"), [], tmp_path)
    training = TASKS["retrieval"].train["blip2"](replace(config, task="retrieval"), adapter, RunData([], tmp_path))
    assert not training.find_unused_parameters
