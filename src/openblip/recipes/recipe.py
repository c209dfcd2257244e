"""What a recipe is: a function of data that gives a configuration, with what a paper says of the run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from openblip.core.errors import UserError
from openblip.data.cards.card import Target

if TYPE_CHECKING:
    from openblip.tasks.config import RunConfig

__all__ = ["BLIP", "BLIP2", "EVERY", "PaperRun", "Recipe"]

BLIP = "Li et al. 2022, arXiv 2201.12086, section 4 and appendix, and published configurations"
BLIP2 = "Li et al. 2023, arXiv 2301.12597, sections 3 and 4 and appendix, and published configurations"
EVERY = ("model", "validation", "steps")
"""options that every recipe takes"""


@dataclass(frozen=True, kw_only=True)
class PaperRun:
    """What a paper says of a run besides its settings."""

    gpus: int
    """with `batch_size` of the settings on each the paper's global batch"""
    card: str
    """the GPU, see `openblip.core.gpus`"""
    samples: int = 0
    """of an epoch, as published; 0 where the run is counted in steps or the number is not known"""
    took: str = ""
    """time and hardware as published"""
    figures: tuple[Target, ...] = ()
    """expected"""
    note: str = ""


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
    data: tuple[str, ...] = ()
    """published datasets that it trains on unless others are named"""
    validation: tuple[str, ...] = ()
    """likewise, that it is measured on while it trains"""
    options_set: Mapping[str, Any] = field(default_factory=dict)
    """options in place of their defaults"""
    settings: tuple[str, ...] = ()
    """of the configuration, as of --set, in place of those of the function"""
    start: tuple[str, ...] = ()
    """settings that stand for the starting model where a run is predicted and not begun"""
    paper: PaperRun | None = None
    """of a run of a paper"""

    @property
    def make(self) -> Callable[..., RunConfig]:
        """The function that gives its configuration."""
        module, _, function = self.function.partition(":")
        return getattr(importlib.import_module(f"openblip.recipes.{module}"), function)

    @property
    def options(self) -> dict[str, Any]:
        """Options besides the data, with their defaults; `inspect.Parameter.empty` where one is needed."""
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} | dict(self.options_set)

    @property
    def size(self) -> str:
        """The size that stands for a starting model where a run is predicted and not begun."""
        return "base" if self.function.startswith("blip:") else ""

    def config(self, data: tuple[str, ...] = (), *, steps: int | None = None, **options: Any) -> RunConfig:
        """The configuration.

        Args:
            data: sources, "PATH?setting=value"; none takes the recipe's own, and its data to measure on with them.
            steps: of the optimizer, in place of the recipe's length.
            options: of `options`; None is left out.

        Raises:
            UserError: an option is missing, or is not one of the recipe's.
        """
        from openblip.core.config import override

        given = {name: value for name, value in options.items() if value not in (None, ())}
        self.check(given)
        if not data:
            data, given = self.data, {"validation": self.validation, **given}
        given = {**self.options_set, **given}
        own = "steps" in self.options
        if steps is not None and own:
            given["steps"] = steps
        made = override(self.make(data, **given), self.settings)
        if steps is not None and not own:
            made = replace(made, train=replace(made.train, max_steps=steps))
        return made

    def check(self, given: Collection[str]) -> None:
        """Refuse options that the recipe does not take, and lacking ones that it needs; imports no torch.

        Raises:
            UserError: see above.
        """
        takes = (*EVERY, *self.takes)
        if foreign := sorted(set(given) - set(takes)):
            known = ", ".join(f"--{name}" for name in takes)
            raise UserError(f"the recipe {self.name} has no option --{foreign[0]}; it takes {known}")
        if missing := [name for name in self.needs if name not in given]:
            raise UserError(
                f"the recipe {self.name} needs --{missing[0]}; openblip train {self.name} --help says more"
            )
