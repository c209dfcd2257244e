"""What can be wrong with a command's arguments and is seen without importing torch, before the command runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from openblip.core.places import check_data, check_model, check_new_file, check_picture

__all__ = ["check_arguments"]

_STDIN = "-"


def _pictures(place: str) -> None:
    if place != _STDIN:
        check_picture(place)


_CHECKS: dict[str, Callable[[Any], None]] = {
    **dict.fromkeys(("model", "captioner", "filter"), check_model),
    **dict.fromkeys(("data", "validation", "web", "human"), check_data),
    "pictures": _pictures,
}
"""by the name of a parameter, whatever the command"""
_OF_COMMANDS: dict[tuple[str, str], Callable[[Any], None]] = {
    ("info", "source"): check_model,
    ("convert", "source"): check_model,
    ("capfilt", "source"): check_data,
    **{(command, "out"): check_new_file for command in ("caption", "match", "ask", "embed")},
}


def check_arguments(command: str, function: Callable[..., None], args: tuple[Any, ...], options: Any) -> None:
    """Look at the arguments that `function`, called `command`, is about to be called with.

    Raises:
        UserError: a model, images or data are not where they are said to be, or a result would be written over.
    """
    bound = inspect.signature(function).bind(*args, **options)
    given = bound.arguments
    # A configuration file may take the place of arguments; a bootstrap that goes on reads only what is not done.
    if given.get("config") is not None or (command == "bootstrap" and given["out"].exists()):
        return
    for name, value in given.items():
        check = _OF_COMMANDS.get((command, name)) or _CHECKS.get(name)
        if check is not None and value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                check(one)
