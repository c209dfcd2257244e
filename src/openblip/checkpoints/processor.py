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
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD

__all__ = ["fold_normalization", "read_pixels_as_ours"]

_PATCHES = "vision_model.embeddings.patch_embedding."
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
    if weight is not None and bias is not None and weight.ndim == 4:  # else its keys are refused later
        folded = fold_normalization(weight.float(), bias.float(), mean, std)
        state[f"{_PATCHES}weight"], state[f"{_PATCHES}bias"] = folded


def _normalization(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, of values from 0 to 1, that a folder's processor normalizes with."""
    found: Any = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            read = read_json(folder / name)
            read = read.get("image_processor", read) if isinstance(read, dict) else {}
            found = read if isinstance(read, dict) and "image_mean" in read else found
    # Pixels from 0 to 255 are multiplied by the factor first.
    factor = 255 * found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 255.0
    if found.get("do_normalize", True):
        mean, std = found.get("image_mean") or IMAGE_MEAN, found.get("image_std") or IMAGE_STD
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        mean, std = [float(value) / factor for value in mean], [float(value) / factor for value in std]
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
            raise ValueError
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"the image processor in {folder} has image_mean and image_std that are not three numbers each"
        ) from error
    return mean, std
