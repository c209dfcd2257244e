"""The model of an index: told from others by its weights, whatever dtype it computes in."""

from __future__ import annotations

import os
from pathlib import Path

from openblip.core.errors import UserError
from openblip.core.fingerprint import fingerprint
from openblip.tasks.load import load
from openblip.tasks.predictor import Predictor

__all__ = ["model_fingerprint", "open_model_of", "source_of"]

_LANGUAGE = "language."
"""what an index does not use of a BLIP-2 model"""


def model_fingerprint(predictor: Predictor) -> str:
    """32 hex digits: of the size of images and of the weights, the same in every dtype."""
    used = (named for named in predictor.model.named_parameters() if not named[0].startswith(_LANGUAGE))
    return fingerprint(used, config=predictor.adapter.image_size, signs=True)


def source_of(model: str) -> str:
    """A model's folder or file by its absolute path; a name on the hub as it is."""
    return os.path.abspath(model) if Path(model).exists() else model


def open_model_of(
    settings: dict[str, str], model: str | None, *, device: str, dtype: str, batch_size: int
) -> Predictor:
    """The model that an index was built with, or another copy of it.

    Args:
        settings: of the index.
        model: where it is now; None is where it was.

    Raises:
        UserError: it is not there any more.
    """
    place = model or settings["model"]
    if model is None and os.path.isabs(place) and not Path(place).exists():
        raise UserError(f"the model of this index is no longer at {place}; say where it is with --model")
    tokenizer = settings["tokenizer"] or None
    return load(place, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size)
