"""From stored pixels to what a vision tower reads: each tower knows its own mean and standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "Triple", "normalize"]

Triple = tuple[float, float, float]
IMAGE_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, which BLIP's towers use too"""


def normalize(
    pixels: Tensor, dtype: torch.dtype = torch.float32, *, mean: Triple = IMAGE_MEAN, std: Triple = IMAGE_STD
) -> Tensor:
    """Turn uint8 [..., 3, H, W] into normalised floats of the same shape, on the same device.

    The arithmetic is float32 whatever `dtype` is; the result is rounded once. `mean` and `std` are of values from
    0 to 1.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"normalize takes uint8 images, not {pixels.dtype}")
    # Filled on the device: values copied to it would make the host wait for all that it has still to do.
    center, scale = (
        torch.cat([torch.full((1, 1, 1), value, device=pixels.device) for value in values]) * 255.0
        for values in (mean, std)
    )
    return pixels.to(torch.float32).sub_(center).div_(scale).to(dtype)
