"""What tyro reads of a command: its arguments, --data-root among them, and their help."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

from tyro.conf import arg

__all__ = ["arguments_of", "for_tyro", "typed"]

_TWO_WORDS = ("index", "capfilt")
"""first words of commands of two words"""
_DATA = {"data", "pairs", "validation", "web", "human"}
"""parameters that name data"""
_HELP = re.compile(r"^ {4}\w+: .*(?:\n {8}.*)*", re.MULTILINE)
"""an argument in a docstring"""
_DataRoot = Annotated[
    str | None,
    arg(
        metavar="FOLDER",
        help="the folder of the published datasets, for coco:test and the like; left out, that of OPENBLIP_DATA",
        help_behavior_hint="",
    ),
]


def typed(name: str) -> str:
    """A command as it is typed: index-build is "index build"."""
    first, _, second = name.partition("-")
    return f"{first} {second}" if second and first in _TWO_WORDS else name


def arguments_of(name: str, command: Callable[..., None]) -> inspect.Signature:
    """What `command`, called `name`, takes on the command line: its parameters and, with data, --data-root."""
    signature = inspect.signature(command, eval_str=True)
    own = signature.parameters
    # The data of experiments are others, and datasets has the option itself.
    if name in ("experiments", "datasets") or not (name in ("capfilt", "classify") or _DATA & own.keys()):
        return signature
    root = inspect.Parameter("data_root", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_DataRoot)
    parameters, names = list(own.values()), list(own)
    # The options from --dry-run on are for that alone.
    parameters.insert(names.index("dry_run") if "dry_run" in names else len(names), root)
    return signature.replace(parameters=parameters)


def for_tyro(name: str, command: Callable[..., None], run: Callable[..., None]) -> Callable[..., Any]:
    """A function with the arguments and the help of `command`, called `name`, that returns `run` with arguments."""

    def collect(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(run, *args, **kwargs)

    signature = arguments_of(name, command)
    collect.__doc__ = _HELP.sub(_as_shown, inspect.getdoc(command) or "")
    collect.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    collect.__signature__ = signature  # type: ignore[attr-defined]
    return collect


def _as_shown(found: re.Match[str]) -> str:
    """The help of an argument in one line, which tyro breaks to fit, and one sentence without its full stop."""
    line = re.sub(r"\n +", " ", found[0])
    several = re.search(r"[^.]\.\s", line)
    return line if several else line.removesuffix(".")
