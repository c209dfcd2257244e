"""From stored pixels to what a vision tower reads: each tower knows its own mean and standard deviation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "Triple", "normalize", "over_frames"]

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


def over_frames(encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Tokens of images, or those of all frames of videos in one sequence, as BLIP reads videos.

    No frame is told from another by its time: the result does not depend on their order beyond rounding.

    Args:
        encode: [B, 3, H, W] -> [B, N, D].
        images: [B, 3, H, W], or K frames each [B, K, 3, H, W].

    Returns:
        [B, N, D], or [B, K * N, D].
    """
    if images.ndim == 4:
        return encode(images)
    return encode(images.flatten(0, 1)).unflatten(0, images.shape[:2]).flatten(1, 2)
