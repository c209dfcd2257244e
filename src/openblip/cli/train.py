"""The command `train`, for every run."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from openblip.cli.arguments import Card, OptionalData, Pixels, Sets, Validation, need
from openblip.core.errors import UserError

if TYPE_CHECKING:
    from openblip.recipes.catalogue import Recipe
    from openblip.tasks.config import RunConfig

__all__ = ["check_train", "is_file", "own_data", "show_recipe", "train"]

WHAT_DATA = (
    "the data: a folder of images with .txt files, a captions file, tars, hf:NAME, or world:train to try it out"
)
_NAME = re.compile(r"[\w-]+(\.\d[\w-]*)?")
"""what may be the name of a recipe, as blip2-vqa-opt-6.7b, and not a file"""
Start = Annotated[
    str | None,
    arg(metavar="MODEL", help="the model to start from, or a size to train from scratch", help_behavior_hint=""),
]
Place = Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")]
Number = Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")]
Share = Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")]
RunFolder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
_OF_DRY_RUNS = ("gpu", "gpus", "samples", "mfu", "json")
"""options that nothing else reads"""


def train(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE", help_behavior_hint="")],
    data: OptionalData = (),
    /,
    *,
    out: RunFolder = None,
    model: Start = None,
    validation: Validation = (),
    steps: Number = None,
    tokenizer: Place = None,
    vision: Place = None,
    image_size: Pixels = None,
    text: Place = None,
    language: Place = None,
    set: Sets = (),
    resume: bool = False,
    dry_run: bool = False,
    gpu: Card = None,
    gpus: Number = None,
    samples: Number = None,
    mfu: Share = None,
    json: bool = False,
) -> None:
    """Train a model by a recipe: pre-training and fine-tuning, of BLIP and of BLIP-2.

    Args:
        recipe: a name of `openblip recipes`, or a TOML or JSON file of settings (every run writes config.json).
        data: folders, captions files, tars, hf:NAME or world:SPLIT; settings follow a question mark, as in
            "a.jsonl?text_column=alt". A run of a paper brings its own published datasets, found below --data-root.
        out: folder of the run, a new one or with --resume; the model will be in FOLDER/model, with --validation
            and a recipe that monitors a metric the best one in FOLDER/best.
        steps: steps of the optimizer, in place of the recipe's length.
        tokenizer: a folder or hub name, or "train" to learn one from the captions.
        vision: BLIP-2's frozen tower: timm:NAME, hf:NAME or openblip:FOLDER, with @1 read before its last block; or
            the Vision Transformer that BLIP's tower starts from: timm:NAME or hf:NAME.
        text: the BERT that BLIP's text side or BLIP-2's Q-Former starts from: a folder or hub name.
        image_size: side of the images in pixels; left out, that of the recipe, of BLIP-2's frozen tower its own.
        language: BLIP-2's frozen language model: a folder or hub name of transformers.
        resume: continue from the newest checkpoint in the run's folder.
        dry_run: print what the run takes, parameters, FLOPs, memory and hours, and begin nothing; no data and no
            weights are read. The options below are for this alone.
        gpu: the card: a100-40, a100-80, h100, h200, a6000, l40s or rtx4090; left out, the paper's, or h100.
        gpus: how many; left out, as many as the paper's, or one.
        samples: of an epoch, where they are not published.
        mfu: share of the card's arithmetic that is assumed to last; left out, 0.4.
        json: print it as JSON.
    """
    from openblip.core.config import override

    named: dict[str, Any] = {"model": model, "vision": vision, "text": text, "language": language, "steps": steps}
    found = None
    if is_file(recipe):
        config = _from_file(Path(recipe), data, validation, named)
    else:
        from openblip.recipes.catalogue import recipe_named

        found = recipe_named(recipe)
        if dry_run and model is None and "model" in found.needs:
            named["model"] = found.size
        config = found.config(data or (found.data or ("DATA",) if dry_run else ()), validation=validation, **named)
        if dry_run and model is None:
            config = override(config, found.start)
    title = config.task if found is None else found.name
    config = override(_with_options(config, tokenizer, image_size), set)
    if dry_run:
        from openblip.cli.plan import show_plan

        given = {"gpu": gpu, "gpus": gpus, "samples": samples, "mfu": mfu}
        show_plan(config, title, None if found is None else found.paper, given, as_json=json)
        return
    assert out is not None, "checked before"
    _run(config, out, resume=resume, title=title)


def _with_options(config: RunConfig, tokenizer: str | None, image_size: int | None) -> RunConfig:
    from dataclasses import replace

    if tokenizer is not None:
        config = replace(config, tokenizer=tokenizer)
    if image_size is not None and config.family == "blip2":
        return replace(config, vision=replace(config.vision, image_size=image_size))
    return config if image_size is None else replace(config, image_size=image_size)


def is_file(recipe: str) -> bool:
    """Whether a recipe is given as a file of settings, and not by its name."""
    return Path(recipe).suffix in (".toml", ".json")


def _from_file(file: Path, data: tuple[str, ...], validation: tuple[str, ...], named: dict[str, Any]) -> RunConfig:
    """The configuration in `file`; what the command line names stands in place of its own."""
    from dataclasses import replace

    from openblip.models.configs import as_language, as_tower
    from openblip.tasks.config import load_run_config

    config = load_run_config(file, data=data, validation=validation)
    if named["model"] is not None:
        config = replace(config, model=named["model"])
    if named["vision"] is not None and config.family == "blip":
        config = replace(config, vision_pretrained=named["vision"])
    elif named["vision"] is not None:
        config = replace(config, vision=as_tower(named["vision"]))
    if named["text"] is not None:
        config = replace(config, text_pretrained=named["text"])
    if named["language"] is not None:
        config = replace(config, language=as_language(named["language"]))
    if named["steps"] is not None:
        config = replace(config, train=replace(config.train, max_steps=named["steps"]))
    return config


def _run(config: RunConfig, out: Path, *, resume: bool, title: str) -> None:
    from openblip.tasks.training import run_training

    result = run_training(config, out, resume=resume, title=title)
    if int(os.environ.get("RANK", "0")) != 0:
        return
    print(f"The model is in {out / 'model'}; its curves: openblip report {out}")
    if result.best:
        print(f"The best one ({result.best['name']} {result.best['value']:.4g}) is in {out / 'best'}")


def show_recipe(name: str) -> None:
    """Print what a recipe takes and sets, as `openblip train NAME --help` does."""
    from rich.console import Console
    from rich.table import Table

    from openblip.recipes.catalogue import recipe_named

    recipe = recipe_named(name)  # a misspelled one is answered without torch

    from openblip.core.config import to_dict
    from openblip.tasks.config import RunConfig, foreign_settings

    config = _example(recipe)
    usual = _flat(to_dict(RunConfig(sources=config.sources, family=config.family)))
    values = _flat(to_dict(config))
    console = Console(highlight=False)
    data = f"[{' '.join(recipe.data)}]" if recipe.data else "DATA ..."
    console.print(f"openblip train {name} {data} --out FOLDER [options]\n", markup=False)
    console.print((inspect.getdoc(recipe.make) or "").partition("\n\n")[0].replace("\n", " "))
    console.print(f"Settings from {recipe.source}.\n")
    options = Table(box=None, pad_edge=False, show_header=False)
    for option, default in recipe.options.items():
        shown = "(required)" if default is inspect.Parameter.empty else f"(default: {_shown(default)})"
        options.add_row(f"  --{option}", shown if default != "" and default != () else "(default: none)")
    if "steps" not in recipe.options:
        options.add_row("  --steps", "(default: the epochs or steps below)")
    console.print(options)
    console.print(
        "  Of every recipe (openblip train --help): --tokenizer, --image-size, --set, --resume, --data-root"
    )
    left_out = {"sources", "validation", "model", *foreign_settings(config.family)}
    table = Table(title="\nsettings (--set NAME=VALUE)", title_justify="left", box=None, pad_edge=False)
    table.add_column("name", no_wrap=True, overflow="fold")  # whole, as --set takes it
    for column in ("value", "default of other runs"):
        table.add_column(column, overflow="fold")
    for key, value in sorted(values.items(), key=lambda item: (item[1] == usual.get(item[0]), item[0])):
        if key.partition(".")[0] not in left_out:
            same = value == usual.get(key)
            table.add_row(key, _shown(value), "" if same else _shown(usual.get(key)), style="dim" if same else None)
    console.print(table)


def _example(recipe: Recipe) -> RunConfig:
    """The recipe's configuration for data and models that need not exist."""
    needed: dict[str, Any] = {
        name: "MODEL" for name, default in recipe.options.items() if default is inspect.Parameter.empty
    }
    return recipe.config(("DATA",), **needed)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _shown(value: Any) -> str:
    """A value in a line; what would not be seen (no text, spaces at an end, line breaks) stands in quotes."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    plain = isinstance(value, str) and value == " ".join(value.split()) != ""
    return str(value) if plain or not isinstance(value, str) else json.dumps(value)


def check_train(recipe: str, given: dict[str, Any]) -> None:
    """Refuse a recipe that does not exist or lacks an option that it needs, without importing torch.

    Args:
        given: the other arguments of `train` that were given.

    Raises:
        UserError: see above.
    """
    from openblip.core.gpus import gpu_named
    from openblip.core.places import check_run_folder, check_run_settings
    from openblip.recipes.catalogue import RECIPES, recipe_named

    dry_run = "dry_run" in given
    if "out" not in given and not dry_run:
        raise UserError("openblip train needs --out; openblip train --help says more")
    if not dry_run and (unread := [name for name in _OF_DRY_RUNS if name in given]):
        raise UserError(f"--{unread[0]} is for --dry-run")
    if "gpu" in given:
        gpu_named(given["gpu"])
    if not dry_run:
        check_run_folder(given["out"], resume="resume" in given)
    if is_file(recipe):
        check_run_settings(Path(recipe))
        return
    if recipe not in RECIPES and (not _NAME.fullmatch(recipe) or Path(recipe).exists()):
        run = Path(recipe) / "config.json"
        hint = f"; the settings of a run are a file: {run}" if run.is_file() else ""
        raise UserError(
            f"the first argument of train is a recipe (openblip recipes lists them), which {recipe} is not{hint}"
        )
    found = recipe_named(recipe)
    options = given.keys() & {"model", "validation", "steps", "vision", "text", "language"}
    found.check(options | (set(found.needs) if dry_run else set()))
    if not dry_run:
        need(given.get("data", found.data), WHAT_DATA)


def own_data(recipe: str, given: Collection[str]) -> tuple[str, ...]:
    """The published datasets that a recipe brings itself, where the command names no data in their place."""
    if is_file(recipe) or "data" in given or "dry_run" in given:
        return ()
    from openblip.recipes.catalogue import recipe_named

    found = recipe_named(recipe)
    return (*found.data, *(() if "validation" in given else found.validation))
