"""A map drawn over its image, as the page and the service show it: no axes, the image's own size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["overlay"]

_COLOURS = torch.tensor([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]).float()
"""from nothing to the largest weight: matplotlib's "inferno", at every quarter"""


def overlay(image: Image.Image, weights: Tensor, *, side: int = 768) -> Image.Image:
    """Draw weights [h, w], stretched over the whole image, from nothing to the largest.

    Args:
        image: RGB.
        side: the longest side in pixels of the RGB image that comes back; smaller images keep their size.
    """
    shown = image.copy()
    shown.thumbnail((side, side))
    scaled = (weights / weights.max().clamp(min=1e-12))[None, None].float()
    size = (shown.height, shown.width)
    heat = F.interpolate(scaled, size, mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)
    place = heat * (len(_COLOURS) - 1)
    low = place.floor().long().clamp(max=len(_COLOURS) - 2)
    colours = torch.lerp(_COLOURS[low], _COLOURS[low + 1], (place - low)[..., None])
    drawn = Image.fromarray(colours.round().to(torch.uint8).numpy())
    return Image.blend(shown, drawn, 0.55)
