"""The catalogue: every recipe by name, with what it takes and where its settings come from.

recipe = RECIPES["blip-caption"]
config = recipe.config(("coco/train.jsonl",), model="runs/pretrained/model", steps=1000)
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from openblip.core.errors import UserError, nearest

if TYPE_CHECKING:
    from openblip.tasks.config import RunConfig

__all__ = ["RECIPES", "Recipe", "recipe_named"]


@dataclass(frozen=True)
class Recipe:
    """A run as a function of its data."""

    name: str
    function: str
    """MODULE:FUNCTION within `openblip.recipes`, imported when used, so that the catalogue is read without torch"""
    summary: str
    source: str
    """where its settings come from"""
    needs: tuple[str, ...] = ()
    """options that have no default"""
    takes: tuple[str, ...] = ()
    """options besides those that every recipe takes: model, validation, steps"""

    @property
    def make(self) -> Callable[..., RunConfig]:
        """The function that gives its configuration."""
        module, _, function = self.function.partition(":")
        return getattr(importlib.import_module(f"openblip.recipes.{module}"), function)

    @property
    def options(self) -> dict[str, Any]:
        """Options besides the data, with their defaults; `inspect.Parameter.empty` where one is needed."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def config(self, data: tuple[str, ...], *, steps: int | None = None, **options: Any) -> RunConfig:
        """The configuration.

        Args:
            data: sources, "PATH?setting=value".
            steps: of the optimizer, in place of the recipe's length.
            options: of `options`; None is left out.

        Raises:
            UserError: an option is missing, or is not one of the recipe's.
        """
        given = {name: value for name, value in options.items() if value not in (None, ())}
        self.check(given)
        own = "steps" in self.options
        if steps is not None and own:
            given["steps"] = steps
        made = self.make(data, **given)
        if steps is not None and not own:
            made = replace(made, train=replace(made.train, max_steps=steps))
        return made

    def check(self, given: Collection[str]) -> None:
        """Refuse options that the recipe does not take, and lacking ones that it needs; imports no torch.

        Raises:
            UserError: see above.
        """
        takes = (*_EVERY, *self.takes)
        if foreign := sorted(set(given) - set(takes)):
            known = ", ".join(f"--{name}" for name in takes)
            raise UserError(f"the recipe {self.name} has no option --{foreign[0]}; it takes {known}")
        if missing := [name for name in self.needs if name not in given]:
            raise UserError(
                f"the recipe {self.name} needs --{missing[0]}; openblip train {self.name} --help says more"
            )


_EVERY = ("model", "validation", "steps")
_BLIP = "Li et al. 2022, arXiv 2201.12086, section 4 and appendix, and published configurations"
_BLIP2 = "Li et al. 2023, arXiv 2301.12597, sections 3 and 4 and appendix, and published configurations"
_TODAY = "the paper's settings with today's parts, 10 passes at batch 1,024; docs/blip2.md, Today's parts"
_START = ("model",)
_PARTS, _LANGUAGE = ("vision", "text"), ("language",)
_SMALL = "short runs in the scene world, docs/training.md"

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "blip-pretrain",
            "blip:blip_pretrain",
            "pre-training with ITC, ITM and LM, ViT-B or ViT-L",
            _BLIP,
            takes=_PARTS,
        ),
        Recipe("blip-caption", "blip:caption_finetune", "fine-tuning a captioner: LM", _BLIP, _START),
        Recipe(
            "blip-retrieval", "blip:retrieval_finetune", "fine-tuning for retrieval: ITC and ITM", _BLIP, _START
        ),
        Recipe("blip-vqa", "blip:vqa_finetune", "fine-tuning for questions", _BLIP, _START),
        Recipe("blip-visdial", "blip:dialog_finetune", "fine-tuning for dialogs", _BLIP, _START),
        Recipe("blip-nlvr", "blip:nlvr_finetune", "fine-tuning for statements about two images", _BLIP, _START),
        Recipe(
            "blip2-stage1",
            "blip2:blip2_stage1",
            "the Q-Former over a frozen tower: ITC, ITM and ITG",
            _BLIP2,
            takes=_PARTS,
        ),
        Recipe(
            "blip2-stage2",
            "blip2:blip2_stage2",
            "a frozen language model behind the Q-Former",
            _BLIP2,
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
            "blip2-caption", "blip2:blip2_caption", "fine-tuning a model of stage 2 for captions", _BLIP2, _START
        ),
        Recipe(
            "blip2-vqa",
            "blip2:blip2_vqa",
            "fine-tuning for questions, which the Q-Former reads too",
            _BLIP2,
            _START,
            _LANGUAGE,
        ),
        Recipe(
            "blip2-retrieval",
            "blip2:blip2_retrieval",
            "fine-tuning a model of stage 1 for retrieval",
            _BLIP2,
            _START,
        ),
        Recipe(
            "small-pretrain", "small:small_pretrain", "a small BLIP from scratch, on a CPU", _SMALL, takes=_PARTS
        ),
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
        UserError: there is none; names the nearest.
    """
    if name not in RECIPES:
        raise UserError(f'there is no recipe "{name}"{nearest(name, RECIPES)}; openblip recipes lists them')
    return RECIPES[name]
