"""The recipes: the papers' numbers, what every size can do, and their trip through files."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from openblip.cli.recipes import facts_of
from openblip.cli.train import show_recipe, train
from openblip.core.config import from_dict, override, save, to_dict
from openblip.core.errors import UserError
from openblip.recipes.blip import blip_pretrain, caption_finetune, retrieval_finetune
from openblip.recipes.catalogue import RECIPES as CATALOGUE
from openblip.recipes.catalogue import recipe_named
from openblip.recipes.small import small_pretrain
from openblip.tasks.config import RunConfig, load_run_config

DATA = ("photos/", "more.jsonl?text_column=alt&weight=2")
RECIPES: dict[str, Callable[[], RunConfig]] = {
    "base": lambda: blip_pretrain(DATA, validation=("world:val",)),
    "large": lambda: blip_pretrain(DATA, model="large"),
    "small": lambda: small_pretrain(DATA, steps=77),
    "caption": lambda: caption_finetune(DATA, model="m", validation=("world:val",)),
    "retrieval": lambda: retrieval_finetune(DATA, model="large"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    config = RECIPES[name]()
    save(config, tmp_path / "recipe.json")
    assert load_run_config(tmp_path / "recipe.json") == config
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.sources[1].text_column == "alt"
    assert config.sources[1].weight == 2


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_can_be_set_anew(name: str) -> None:
    config = RECIPES[name]()
    for section, value in (("train", config.train), ("objective", config.objective), ("decode", config.decode)):
        for field in fields(value):
            given = getattr(value, field.name)
            if isinstance(given, bool | int | float | str):
                assert override(config, [f"{section}.{field.name}={given}"]) == config, field.name
    changed = override(config, ["train.learning_rate=2e-4", "batch_size=75", "objective.queue_size=0"])
    assert (changed.train.learning_rate, changed.batch_size, changed.objective.queue_size) == (2e-4, 75, 0)
    with pytest.raises(UserError, match=r'did you mean "train\.learning_rate"'):
        override(config, ["train.learningrate=1"])


def test_pretraining_is_the_papers() -> None:
    base, large = blip_pretrain(DATA), blip_pretrain(DATA, model="large")
    assert (base.train.learning_rate, large.train.learning_rate) == (3e-4, 2e-4)
    assert base.train.epochs == 20
    assert base.train.weight_decay == 0.05
    assert (base.train.warmup_steps, base.train.warmup_learning_rate) == (3000, 1e-6)
    assert (base.train.schedule, base.train.decay_rate) == ("epoch-decay", 0.85)
    assert (base.objective.queue_size, base.objective.momentum, base.objective.alpha) == (57600, 0.995, 0.4)
    assert base.objective.alpha_ramp_epochs == 2.0
    assert base.objective.label_smoothing == 0.1
    assert base.text_pretrained == "bert-base-uncased"
    assert base.vision_pretrained.startswith("timm:deit_base_patch16_224")
    assert large.vision_pretrained.startswith("timm:vit_large_patch16_224")


def test_fine_tuning_is_the_papers() -> None:
    caption = caption_finetune(DATA, model="m")
    assert (caption.image_size, caption.train.learning_rate, caption.train.epochs) == (384, 1e-5, 5)
    assert (caption.prompt, caption.task) == ("a picture of ", "captioning")
    assert (caption.decode.num_beams, caption.decode.min_new_tokens, caption.decode.max_new_tokens) == (3, 1, 16)
    retrieval = retrieval_finetune(DATA, model="m")
    assert (retrieval.image_size, retrieval.train.learning_rate, retrieval.train.epochs) == (384, 1e-5, 6)
    assert retrieval_finetune(DATA, model="large").train.learning_rate == 5e-6
    assert retrieval.objective.use_image_ids
    assert retrieval.task == "retrieval"
    assert (retrieval.objective.alpha, retrieval.objective.queue_size) == (0.4, 57600)
    assert retrieval.rerank_k == 128
    assert all(source.pairs for source in (*caption.sources, *retrieval.sources)), "each caption is a sample"


@pytest.mark.parametrize("made", [caption_finetune, retrieval_finetune])
@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ({"model": {"vision": {"image_size": 64}}}, None),
        ({"model": {"vision": {"image_size": [64, 96]}}}, None),
        ({"model_type": "blip", "vision_config": {"image_size": 64}}, None),
        ({"model": {"vision": {"image_size": 224}}}, 384),
        ({"model": {"vision": {"image_size": [64, 224]}}}, 384),
        ({"model_type": "blip", "vision_config": {"image_size": 384}}, 384),
        ({"model_type": "blip"}, 384),
    ],
)
def test_small_models_keep_their_resolution(
    made: Callable[..., RunConfig], described: dict[str, object], expected: int | None, tmp_path: Path
) -> None:
    """At 384 pixels a model of 64 took 20 times as long for a step."""
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert made(DATA, model=str(tmp_path)).image_size == expected


@pytest.mark.parametrize("made", [caption_finetune, retrieval_finetune])
@pytest.mark.parametrize(
    ("model", "expected"), [("nano", None), ("micro", None), ("base", 384), ("someone/blip", 384)]
)
def test_small_sizes_start_at_theirs(made: Callable[..., RunConfig], model: str, expected: int | None) -> None:
    assert made(DATA, model=model).image_size == expected


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_recipe_of_the_catalogue_gives_its_configuration(name: str) -> None:
    recipe = CATALOGUE[name]
    needed = [option for option, default in recipe.options.items() if default is inspect.Parameter.empty]
    assert needed == list(recipe.needs), "what the command line asks for before torch is imported"
    takes = {"model", "validation", "steps", *recipe.takes}
    assert takes == {*recipe.options, "steps"}, "what it refuses before torch is imported"
    assert takes <= inspect.signature(train).parameters.keys(), "what the command line can pass"
    given = dict.fromkeys(recipe.needs, "m")
    config = recipe.config(DATA, steps=7, validation=("world:val",), **given)
    assert config.train.max_steps == 7
    assert [source.path for source in config.sources] == ["photos/", "more.jsonl"]
    assert len(config.validation) == 1
    assert config.family == ("blip2" if "blip2" in name or "stage" in name else "blip")
    assert from_dict(RunConfig, to_dict(config)) == config
    with pytest.raises(UserError, match="has no option --colour"):
        recipe.config(DATA, colour="red", **given)
    for option in recipe.needs:
        with pytest.raises(UserError, match=f"needs --{option}"):
            recipe.config(DATA)


@pytest.mark.parametrize("name", CATALOGUE)
def test_help_of_a_recipe_names_its_settings_whole_in_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--set takes the names as they are shown; each row begins with one."""
    monkeypatch.setenv("COLUMNS", "80")
    show_recipe(name)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    known = CATALOGUE[name].config(("DATA",), **dict.fromkeys(CATALOGUE[name].needs, "MODEL"))
    rows = shown.partition("\nsettings (--set NAME=VALUE)")[2].splitlines()[2:]
    names = [row.split()[0] for row in rows if row[:1].strip()]
    assert {"batch_size", "train.evaluate_every_epochs", "train.gradient_checkpointing"} <= set(names)
    for setting in names:
        value: object = known
        for part in setting.split("."):
            value = getattr(value, part)


def test_a_recipe_tells_the_size_of_its_images() -> None:
    told = {name: " ".join(facts_of(CATALOGUE[name])["settings"]) for name in ("small-pretrain", "blip-caption")}
    assert "images of the size that the model reads, texts of at most 40 tokens" in told["small-pretrain"]
    assert "images of 384 x 384 pixels, " in told["blip-caption"]


def test_help_shows_what_would_not_be_seen_in_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    show_recipe("blip-caption")
    assert '"a picture of "' in capsys.readouterr().out
    show_recipe("blip2-stage2")
    shown = capsys.readouterr().out
    assert '"\\n"' in shown
    assert "(default: )" not in shown


def test_the_papers_numbers_of_every_recipe_are_those_of_its_family() -> None:
    sources = {name.partition("-")[0]: recipe.source for name, recipe in CATALOGUE.items()}
    assert "2201.12086" in sources["blip"]
    assert "2301.12597" in sources["blip2"]
    with pytest.raises(UserError, match='did you mean "blip-caption"'):
        recipe_named("blip-captions")


def test_todays_parts_take_the_papers_settings() -> None:
    for stage, options in (("stage1", {}), ("stage2", {"model": "m"})):
        made = recipe_named(f"blip2-today-{stage}").config(DATA, **options)
        paper = recipe_named(f"blip2-{stage}").config(DATA, **options)
        assert (made.train.epochs, made.train.max_steps, made.batch_size) == (10, None, 128)
        for name in ("learning_rate", "min_learning_rate", "warmup_steps", "betas", "weight_decay"):
            assert getattr(made.train, name) == getattr(paper.train, name)
    first = recipe_named("blip2-today-stage1").config(DATA)
    assert "siglip" in first.vision.source
    assert first.vision.drop_layers is None  # becomes 1 when the tower is built, as the paper reads it
    other = recipe_named("blip2-today-stage1").config(DATA, vision="timm:vit_large_patch16_dinov3.lvd1689m")
    assert "dinov3" in other.vision.source
    second = recipe_named("blip2-today-stage2").config(DATA, model="m")
    assert ("Qwen3" in second.language.source, second.language.end) == (True, "")
    assert (
        "gemma"
        in recipe_named("blip2-today-stage2")
        .config(DATA, model="m", language="google/gemma-3-1b-pt")
        .language.source
    )
