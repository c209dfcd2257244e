"""What is reported to a person who made a mistake: one sentence that says what, where and what to do.

The command line prints a `UserError` without a traceback and exits with code 2; every other exception
is ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import ModuleType

__all__ = [
    "TYPE_NAMES",
    "MissingExtra",
    "ToldElsewhere",
    "UserError",
    "about",
    "closest",
    "first_line",
    "nearest",
    "require",
]

TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""what messages call the types of values"""
_MOST_BEGUN = 8
"""names that begin with what was written, of which a hint gives all"""


class UserError(ValueError):
    """A mistake of the user's, reported in one sentence; shown without a traceback."""


class MissingExtra(UserError):
    """A feature needs a package that only an extra of ours installs."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package} is not installed; run: pip install "openblip[{extra}]"')
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        """Pickled by what it was made from, since a process of a pool raises it in another."""
        return type(self), (self.package, self.extra)


class ToldElsewhere(UserError):
    """A mistake that another process of the same launch raises as well, and reports."""


@contextmanager
def about(*places: object) -> Iterator[None]:
    """Let every `UserError` from inside name the file or folder that it is about.

    Args:
        places: what it may be called in messages; a message with none of these names is put after the first.
    """
    try:
        yield
    except UserError as error:
        known = [name for place in places for name in (str(place), PurePath(str(place)).name) if name]
        if type(error) is not UserError or any(name in str(error) for name in known):
            raise
        raise UserError(f"{places[0]}: {error}") from error


def closest(name: str, valid: Iterable[str], within: str = "") -> str:
    """Return ' (did you mean "x"?)' for the closest of `valid`, "" when nothing is close.

    Those that begin with `name` are the closest: all of them, unless they are many.

    Args:
        within: what stands before each of them where it is written.
    """
    valid = [str(choice) for choice in valid]
    begun = [one for one in valid if one.startswith(name)] if len(name.lstrip("-")) > 1 else []
    if len(begun) > _MOST_BEGUN:
        begun = []
    meant = begun or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    *others, last = [f'"{within}{one}"' for one in meant] or [""]
    return f" (did you mean {', '.join(others)}{' or ' * bool(others)}{last}?)" if last else ""


def nearest(name: str, valid: Iterable[str], within: str = "") -> str:
    """As `closest`, or ' (known: ...)' when nothing is close."""
    choices = [str(choice) for choice in valid]
    known = f" (known: {', '.join(sorted(choices))})" if choices else ""
    return closest(name, choices, within) or known


def first_line(error: BaseException) -> str:
    """The first line of another library's message, without a full stop; the kind of error where it has none."""
    line = str(error).strip().partition("\n")[0].strip().rstrip(".")
    return line or type(error).__name__


def require(module_name: str, extra: str) -> ModuleType:
    """Import `module_name`, or raise `MissingExtra` naming the extra that brings it."""
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise MissingExtra(module_name.split(".")[0], extra) from error
