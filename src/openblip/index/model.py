"""The model of an index: told from others by its weights, whatever dtype it computes in."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from openblip.core.errors import UserError
from openblip.tasks.load import load
from openblip.tasks.predictor import Predictor

__all__ = ["model_fingerprint", "open_model_of", "source_of"]

_VALUES = 4096
"""of each tensor that are read"""
_LANGUAGE = "language."
"""what an index does not use of a BLIP-2 model"""


def model_fingerprint(predictor: Predictor) -> str:
    """32 hex digits: names, shapes and the signs of weights, which are the same in every dtype.

    Training changes the sign of many small weights at once, so that a fine-tuned model differs too.
    """
    digest = hashlib.blake2b(str(predictor.adapter.image_size).encode(), digest_size=16)
    for name, tensor in predictor.model.named_parameters():
        if not name.startswith(_LANGUAGE):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            signs = tensor.detach().reshape(-1)[:_VALUES].signbit().cpu().numpy()
            digest.update(np.packbits(signs).tobytes())
    return digest.hexdigest()


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
