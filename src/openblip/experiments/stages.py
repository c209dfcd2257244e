"""How an experiment can be stopped and resumed: each of its parts is made once and kept in its folder.

A result is a JSON file that `once` writes; a training is a folder that `trained` leaves with its model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from openblip.core.files import write_json
from openblip.core.text import read_json

__all__ = ["once", "trained"]


def once(path: Path, make: Callable[[], Any], *, again: bool = False) -> Any:
    """What the JSON file `path` holds; `make` gives it the first time.

    Args:
        again: make it even if it is there.
    """
    if again or not path.exists():
        write_json(path, make())
    return read_json(path)


def trained(run: Path, train: Callable[[Path], Any]) -> Path:
    """The model's folder of the training in `run`, which `train` runs or resumes if it is not finished."""
    if not (run / "model").exists():
        train(run)
    return run / "model"
