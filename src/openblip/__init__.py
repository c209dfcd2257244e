"""OpenBLIP: BLIP and BLIP-2, maintained, complete and fast.

import openblip
model = openblip.load("runs/demo/captioner/model")
model.caption("picture.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.tasks.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(source: str, **options: Any) -> Predictor:
    """Open a model to use; arguments as `openblip.tasks.predictor.Predictor.load`."""
    from openblip.tasks.predictor import Predictor  # torch is imported only when a model is asked for

    return Predictor.load(source, **options)
