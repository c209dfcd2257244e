"""The catalogue: every recipe by name, with what it takes and where its settings come from.

recipe = RECIPES["blip-caption"]
config = recipe.config(("coco/train.jsonl",), model="runs/pretrained/model", steps=1000)
"""

from __future__ import annotations

from typing import Any

from openblip.core.errors import UserError, closest
from openblip.recipes.papers import RUNS
from openblip.recipes.recipe import BLIP, BLIP2, Recipe

__all__ = ["RECIPES", "Recipe", "recipe_named", "runs_table"]

_TODAY = "the paper's settings with today's parts, 10 passes at batch 1,024; docs/blip2.md, Today's parts"
_START = ("model",)
_PARTS, _LANGUAGE = ("vision", "text"), ("language",)
_SMALL = "short runs in the scene world, docs/training.md"

RECIPES: dict[str, Recipe] = RUNS | {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "blip-pretrain",
            "blip:blip_pretrain",
            "pre-training with ITC, ITM and LM, ViT-B or ViT-L",
            BLIP,
            takes=_PARTS,
        ),
        Recipe("blip-caption", "blip:caption_finetune", "fine-tuning a captioner: LM", BLIP, _START),
        Recipe("blip-retrieval", "blip:retrieval_finetune", "fine-tuning for retrieval: ITC and ITM", BLIP, _START),
        Recipe("blip-vqa", "blip:vqa_finetune", "fine-tuning for questions", BLIP, _START),
        Recipe("blip-visdial", "blip:dialog_finetune", "fine-tuning for dialogs", BLIP, _START),
        Recipe("blip-nlvr", "blip:nlvr_finetune", "fine-tuning for statements about two images", BLIP, _START),
        Recipe(
            "blip2-stage1",
            "blip2:blip2_stage1",
            "the Q-Former over a frozen tower: ITC, ITM and ITG",
            BLIP2,
            takes=_PARTS,
        ),
        Recipe(
            "blip2-stage2",
            "blip2:blip2_stage2",
            "a frozen language model behind the Q-Former",
            BLIP2,
            _START,
            _LANGUAGE,
        ),
        Recipe(
            "blip2-today-stage1",
            "blip2:blip2_today_stage1",
            "stage 1 over SigLIP 2, for a few million pairs",
            _TODAY,
            takes=_PARTS,
        ),
        Recipe(
            "blip2-today-stage2",
            "blip2:blip2_today_stage2",
            "stage 2 before Qwen 3, for a few million pairs",
            _TODAY,
            _START,
            _LANGUAGE,
        ),
        Recipe(
            "blip2-caption", "blip2:blip2_caption", "fine-tuning a model of stage 2 for captions", BLIP2, _START
        ),
        Recipe(
            "blip2-vqa",
            "blip2:blip2_vqa",
            "fine-tuning for questions, which the Q-Former reads too",
            BLIP2,
            _START,
            _LANGUAGE,
        ),
        Recipe(
            "blip2-retrieval",
            "blip2:blip2_retrieval",
            "fine-tuning a model of stage 1 for retrieval",
            BLIP2,
            _START,
        ),
        Recipe(
            "small-pretrain", "small:small_pretrain", "a small BLIP from scratch, on a CPU", _SMALL, takes=_PARTS
        ),
        Recipe("small-caption", "small:small_caption", "captions for a small BLIP, on a CPU", _SMALL),
        Recipe("small-retrieval", "small:small_retrieval", "retrieval for a small BLIP, on a CPU", _SMALL),
        Recipe("small-vqa", "small:small_vqa", "questions for a small BLIP, on a CPU", _SMALL),
        Recipe("small-visdial", "small:small_dialog", "dialogs for a small BLIP, on a CPU", _SMALL),
        Recipe("small-nlvr", "small:small_nlvr", "statements about two images for a small BLIP, on a CPU", _SMALL),
        Recipe(
            "small-stage1", "small:small_stage1", "stage 1 with a small Q-Former, on a CPU", _SMALL, takes=_PARTS
        ),
        Recipe(
            "small-stage2",
            "small:small_stage2",
            "stage 2 behind a small Q-Former, on a CPU",
            _SMALL,
            _START,
            _LANGUAGE,
        ),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UserError: there is none; names the closest.
    """
    if name not in RECIPES:
        raise UserError(f'there is no recipe "{name}"{closest(name, RECIPES)}; openblip recipes lists them')
    return RECIPES[name]


def runs_table() -> str:
    """The papers' runs as the table of docs/recipes.md."""
    rows = ["| recipe | trains | batch | length | learning rate | expected |", "|---|---|---|---|---|---|"]
    for recipe in RUNS.values():
        needed: dict[str, Any] = dict.fromkeys(recipe.needs, recipe.size or "m")
        config = recipe.config(recipe.data, **needed)
        train, paper = config.train, recipe.paper
        assert paper is not None
        length = f"{train.epochs} epochs" if train.max_steps is None else f"{train.max_steps:,} steps"
        expected = "; ".join(f"{target.measure} {target.value}" for target in paper.figures)
        batch = f"{paper.gpus} x {config.batch_size}"
        rows.append(
            f"| `{recipe.name}` | {recipe.summary} | {batch} | {length} | {train.learning_rate:g} | {expected} |"
        )
    return "\n".join(rows)
