"""How images are cropped and augmented, read without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["COLOR_KEEPING_OPS", "MAX_MAGNITUDE", "REFERENCE_OPS", "AugmentOp", "ImageTransformConfig"]

MAX_MAGNITUDE = 10.0

AugmentOp = Literal[
    "identity",
    "autocontrast",
    "brightness",
    "sharpness",
    "equalize",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
]

REFERENCE_OPS: tuple[AugmentOp, ...] = get_args(AugmentOp)
"""RandAugment without its colour operations (colour, contrast, posterise, solarise, invert), as published."""

COLOR_KEEPING_OPS: tuple[AugmentOp, ...] = (
    "identity",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
"""Without autocontrast and equalize too: channel by channel, these turn hues that a caption may name."""


@dataclass(frozen=True, kw_only=True)
class ImageTransformConfig:
    """How a decoded image gets the model's size."""

    image_size: int | tuple[int, int] = 224
    """Height and width in pixels; one number for squares."""
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """Range of the random crop's share of the area (aspect 3/4 to 4/3); None resizes the whole image."""
    flip: bool = True
    """Mirror half of the images; switch off where captions speak of left and right."""
    ops: tuple[AugmentOp, ...] = REFERENCE_OPS
    """What RandAugment draws from; empty for none."""
    num_ops: int = 2
    """Operations drawn for each image, in a row."""
    op_probability: float = 0.5
    """With which each of them is applied, as in the reference."""
    magnitude: float = 5.0
    """Strength of the operations, 0 to 10."""

    def __post_init__(self) -> None:
        if min(self.pixels) < 1:
            raise ValueError(f"image_size must be at least 1, not {self.image_size}")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must rise within 0 to 1, as (0.2, 1.0) does, not {self.crop_scale}")
        if not 0 <= self.magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"magnitude must lie between 0 and 10, not {self.magnitude}")
        if not 0 <= self.op_probability <= 1:
            raise ValueError(f"op_probability must lie between 0 and 1, not {self.op_probability}")
        if self.num_ops < 0:
            raise ValueError(f"num_ops cannot be negative, and is {self.num_ops}")

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size
