"""OpenBLIP: BLIP and BLIP-2, maintained, complete and fast.

import openblip
model = openblip.load("runs/demo/captioner/model")
model.caption("photo.jpg")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from openblip.tasks.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    source: Path | str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 32,
    image_size: int | tuple[int, int] | None = None,
    tokenizer: str | None = None,
    like: Literal["reference", "transformers"] = "reference",
    vision: str | None = None,
    language: str | None = None,
    quantize: Literal["none", "8bit", "4bit"] = "none",
) -> Predictor:
    """Open a model to use: a folder, a checkpoint file or a hub name; see `tasks.load.load`."""
    from openblip.tasks.load import load as load_predictor  # torch is imported only when a model is requested

    return load_predictor(
        source,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        image_size=image_size,
        tokenizer=tokenizer,
        like=like,
        vision=vision,
        language=language,
        quantize=quantize,
    )
