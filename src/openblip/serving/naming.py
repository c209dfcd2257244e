"""What clients call the models: names that say nothing of where these lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openblip.core.errors import UserError

__all__ = ["name_models"]

_PLAIN = {"model", "best", "last"}
"""folders of a run that hold its models: the run has the better name"""


def name_models(sources: Sequence[str]) -> dict[str, str]:
    """Sources by the ids of their models: a name on the hub as it is, of a folder or file its own name alone.

    Raises:
        UserError: a model is named twice.
    """
    named: dict[str, str] = {}
    for source in sources:
        path = Path(source)
        name = source
        if path.exists():
            path = path.resolve()
            name = path.parent.name if path.name in _PLAIN else path.stem if path.is_file() else path.name
        if source in named.values():
            raise UserError(f"{source} is named twice")
        number = 2
        while (unique := name if name not in named else f"{name}-{number}") in named:
            number += 1
        named[unique] = source
    return named
