"""How a folder of transformers normalizes its images, and weights that read them normalized as OpenBLIP does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.text import read_json
from openblip.models.normalization import pixel_statistics
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple

__all__ = ["fold_normalization", "read_pixels_as_ours"]

_PATCHES = "vision_model.embeddings.patch_embedding."
_READ = ("image_mean", "image_std", "rescale_factor")
_ROUNDING = 1e-4
"""published files have CLIP's values with five to eight digits"""


def fold_normalization(
    weight: Tensor, bias: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Weight [D, 3, P, P] and bias [D] of a patch embedding, the same for images normalized with CLIP's values.

    Args:
        mean: with which its images were normalized, of values from 0 to 1; `std` likewise.
    """
    means, stds, own_means, own_stds = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std, IMAGE_MEAN, IMAGE_STD)
    )
    # (v - mean) / std, for v = own_std * x + own_mean; the convolution pads nothing.
    shift = (weight * ((own_means - means) / stds)).sum((1, 2, 3))
    return weight * (own_stds / stds), bias + shift


def read_pixels_as_ours(state: dict[str, Tensor], folder: Path) -> None:
    """Change a folder's patch embedding for images normalized with CLIP's values, if its processor has others.

    Raises:
        UserError: what its processor says of the pixels cannot be used.
    """
    mean, std = _normalization(folder)
    usual = (*IMAGE_MEAN, *IMAGE_STD)
    if all(math.isclose(a, b, abs_tol=_ROUNDING) for a, b in zip((*mean, *std), usual, strict=True)):
        return
    weight, bias = state.get(f"{_PATCHES}weight"), state.get(f"{_PATCHES}bias")
    if weight is None or bias is None:  # its keys are refused later, as wrong shapes are
        return
    if weight.ndim == 4 and weight.shape[1] == 3 and bias.shape == weight.shape[:1]:
        folded = fold_normalization(weight.float(), bias.float(), mean, std)
        state[f"{_PATCHES}weight"], state[f"{_PATCHES}bias"] = folded


def _normalization(folder: Path) -> tuple[Triple, Triple]:
    """Mean and standard deviation, of values from 0 to 1, that a folder's processor normalizes with."""
    path, found = _settings(folder)
    try:
        return pixel_statistics(found, (IMAGE_MEAN, IMAGE_STD))
    except (TypeError, ValueError, ArithmeticError) as error:
        given = {name: found[name] for name in _READ if found.get(name) is not None}
        told = ", ".join(f"{name} {str(value)[:60]}" for name, value in given.items())
        raise UserError(f"images cannot be normalized as {path} says: {told}") from error


def _settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Those of a folder's image processor, where transformers looks for them, and their file."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = folder / name
        found = read_json(path) if path.is_file() else {}
        if name == "processor_config.json" and isinstance(found, dict):
            found = found.get("image_processor")
        if isinstance(found, dict) and found:
            return path, found
    return folder, {}
