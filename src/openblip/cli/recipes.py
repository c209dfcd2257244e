"""The command `recipes`: the catalogue of runs, and what is known of one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from openblip.cli.arguments import person
from openblip.core.gpus import gpu_named
from openblip.recipes.catalogue import RECIPES, Recipe, recipe_named
from openblip.recipes.recipe import BLIP, BLIP2

if TYPE_CHECKING:
    from openblip.tasks.config import RunConfig

__all__ = ["facts_of", "recipe_rows", "recipes"]

_GROUPS = {"BLIP's runs": BLIP, "BLIP-2's runs": BLIP2}


def recipes(name: Annotated[Positional[str], arg(metavar="[NAME]", help_behavior_hint="")] = "", /) -> None:
    """List the recipes of `openblip train`: the papers' runs, and those for your own data; or show one.

    Args:
        name: of a recipe; left out, all are listed. openblip train NAME --help shows all of its settings.
    """
    if name:
        facts = facts_of(recipe_named(name))
        if person():
            _print_facts(name, facts)
        else:
            print(json.dumps({"recipe": name, **facts}, indent=2, ensure_ascii=False))
    elif person():
        _print_catalogue()
    else:
        for row in recipe_rows():
            print(json.dumps(row, ensure_ascii=False))


def recipe_rows() -> list[dict[str, str]]:
    """A row for each recipe, in the order of the catalogue's groups."""
    rows = []
    for recipe in RECIPES.values():
        group = next((group for group, source in _GROUPS.items() if recipe.paper and recipe.source == source), "")
        first = recipe.paper.figures[0] if recipe.paper and recipe.paper.figures else None
        rows.append(
            {
                "group": group or "on your own data",
                "recipe": recipe.name,
                "trains": recipe.summary,
                "data": ", ".join(spec.partition("?")[0] for spec in recipe.data),
                "expected": f"{first.value}  {first.measure}" if first else "",
            }
        )
    return rows


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """What is known of a recipe, in the order in which it is shown; texts, and lists of them."""
    needed: dict[str, Any] = dict.fromkeys(recipe.needs, "MODEL")
    config = recipe.config(recipe.data or ("DATA",), **needed)
    facts: dict[str, Any] = {"trains": recipe.summary}
    if recipe.data:
        facts["data"] = ", ".join(recipe.data)
    if recipe.validation:
        facts["measured on"] = ", ".join(recipe.validation)
    facts["settings"] = _settings(recipe, config)
    if (paper := recipe.paper) is not None:
        batch = paper.gpus * config.batch_size
        facts["hardware"] = f"{paper.gpus} x {gpu_named(paper.card).name}, batch {batch:,}"
        facts |= {"time": paper.took} if paper.took else {}
        facts |= {"samples": f"{paper.samples:,} an epoch"} if paper.samples else {}
        expected = [f"{t.measure}: {t.value} by {t.model} ({t.source})" for t in paper.figures]
        facts |= {"expected": expected} if expected else {}
        facts |= {"note": paper.note} if paper.note else {}
    facts["source"] = recipe.source
    needs = "".join(f" --{name} {name.upper()}" for name in recipe.needs)
    where = "--data-root FOLDER" if recipe.data else "DATA"
    facts["run"] = f"openblip train {recipe.name} {where}{needs} --out FOLDER"
    return facts


def _settings(recipe: Recipe, config: RunConfig) -> list[str]:
    train, tower = config.train, config.vision
    length = f"{train.epochs} epochs" if train.max_steps is None else f"{train.max_steps:,} steps"
    side = config.image_size if config.family == "blip" else tower.image_size
    owner = "model" if config.family == "blip" else "vision tower"
    images = f"images of {side} x {side} pixels" if side else f"images of the size that the {owner} reads"
    shown = [
        f"task {config.task}, {length}, batch {config.batch_size} on each process",
        f"learning rate {train.learning_rate:g}, {train.schedule} to {train.min_learning_rate:g}, "
        f"warm-up of {train.warmup_steps:,} steps",
        f"{train.optimizer}, betas {train.betas[0]:g} and {train.betas[1]:g}, weight decay {train.weight_decay:g}",
        f"{images}, texts of at most {config.max_length} tokens",
    ]
    if config.family == "blip2" and recipe.paper is not None:
        parts = dict(setting.split("=") for setting in recipe.start)
        language = parts.get("language.source") or config.language.source
        writes = config.task in ("captioning", "answering")
        shown.append(f"vision {parts.get('vision.source', tower.source)}")
        shown += [f"language {language}"] if writes else []
    if config.prompt:
        shown.append(f'prompt "{config.prompt}"')
    if train.gradient_checkpointing:
        shown.append(f"gradient checkpointing of {train.gradient_checkpointing:.0%} of the blocks")
    return shown


def _print_catalogue() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, rows = Console(highlight=False), recipe_rows()
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        columns = [name for name in ("recipe", "trains", "expected") if any(row[name] for row in own)]
        table = Table(box=None, pad_edge=False, title=Text(group, style="bold"), title_justify="left")
        for name in columns:
            table.add_column(name, no_wrap=name == "recipe")
        for row in own:
            table.add_row(*(Text(row[name]) for name in columns))
        console.print(table, "")
    console.print("openblip recipes NAME shows one, openblip train NAME --help all of its settings.")


def _print_facts(name: str, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for fact, value in facts.items():
        for i, line in enumerate(value if isinstance(value, list) else [value]):
            table.add_row("" if i else fact, Text(line))
    Console(highlight=False).print(Text(name, style="bold"), table)
