"""RandAugment's operations on uint8 images, at the strengths that BLIP trains with.

Rotation and shear sample a grid that is computed once for each angle, which is three times as fast as Pillow's
transform; what comes from outside the image is grey.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional

from openblip.data.transform_config import MAX_MAGNITUDE, AugmentOp

__all__ = ["augment"]


_GREY = 128


def augment(pixels: Tensor, op: AugmentOp, magnitude: float, rng: np.random.Generator) -> Tensor:
    """Apply one operation to uint8 [3, H, W]; geometric ones draw their sign.

    Strengths at magnitude m: enhancement factor 0.1 + 1.8 m/10 (no change at 5), shear 0.3 m/10, shift m
    pixels, rotation 30 m/10 degrees.
    """
    level = magnitude / MAX_MAGNITUDE
    factor = 0.1 + 1.8 * level
    if op == "identity" or (op in ("brightness", "sharpness") and factor == 1.0):
        return pixels
    if op in ("autocontrast", "equalize", "brightness", "sharpness"):
        return _enhance(pixels, op, factor)
    sign = 1 if rng.random() < 0.5 else -1
    if op in ("translate_x", "translate_y"):
        return _shift(pixels, sign * round(magnitude), dim=2 if op == "translate_x" else 1)
    if op == "rotate":
        angle = math.radians(30.0 * level * sign)
        matrix = (math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))
    else:
        shear = 0.3 * level * sign
        matrix = (1.0, shear, 0.0, 1.0) if op == "shear_x" else (1.0, 0.0, shear, 1.0)
    # Around grey as zero, so that the zeros from outside are grey too.
    centred = pixels[None].to(torch.float32).sub_(_GREY)
    moved = functional.grid_sample(centred, _grid(matrix, *pixels.shape[1:]), align_corners=False)
    return moved.add_(_GREY).round_().to(torch.uint8)[0]


def _enhance(pixels: Tensor, op: AugmentOp, factor: float) -> Tensor:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if op == "autocontrast":
        image = ImageOps.autocontrast(image)
    elif op == "equalize":
        image = ImageOps.equalize(image)
    elif op == "brightness":
        image = ImageEnhance.Brightness(image).enhance(factor)
    else:
        image = ImageEnhance.Sharpness(image).enhance(factor)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _shift(pixels: Tensor, distance: int, *, dim: int) -> Tensor:
    """Move by whole pixels, towards higher indices where `distance` is positive."""
    size = pixels.shape[dim]
    kept = max(0, size - abs(distance))
    moved = torch.full_like(pixels, _GREY)
    source, target = (0, size - kept) if distance > 0 else (size - kept, 0)
    moved.narrow(dim, target, kept).copy_(pixels.narrow(dim, source, kept))
    return moved


@functools.lru_cache(maxsize=64)
def _grid(matrix: tuple[float, float, float, float], height: int, width: int) -> Tensor:
    """Return where each pixel comes from, [1, H, W, 2], for a linear map of pixels about the image's centre."""
    a, b, c, d = matrix
    # The grid counts both sides from -1 to 1, however long each is.
    theta = torch.tensor([[[a, b * height / width, 0.0], [c * width / height, d, 0.0]]])
    return functional.affine_grid(theta, [1, 3, height, width], align_corners=False)
