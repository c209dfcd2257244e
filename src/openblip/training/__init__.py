"""Training: one loop over Accelerate, its optimiser, its state and its logs; it knows a `Step`, no model, no task.

Names are imported when they are requested, so that a command line can read `TrainConfig` without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.training.config import TrainConfig
    from openblip.training.interrupt import Interrupted
    from openblip.training.launch import start
    from openblip.training.loop import TrainResult, train
    from openblip.training.meters import NotFinite
    from openblip.training.step import Loader, Step

__all__ = ["Interrupted", "Loader", "NotFinite", "Step", "TrainConfig", "TrainResult", "start", "train"]

_HOMES = {
    "Interrupted": "interrupt",
    "Loader": "step",
    "NotFinite": "meters",
    "Step": "step",
    "TrainConfig": "config",
    "TrainResult": "loop",
    "start": "launch",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"openblip.training.{_HOMES[name]}"), name)
