"""Image transforms of the papers, as pure functions of their input and a random generator.

Images come in as RGB images and leave as uint8 [3, H, W]; the model normalises them on the device,
so that a quarter of the bytes travels. Every random choice comes from the generator that is passed in: the
loader derives one for each position of the stream, and so an augmentation depends on nothing else.

Crops are resized by PyTorch's antialiased bicubic filter on uint8, three times as fast as Pillow's and equal
to it within a grey level or so (a test says how much).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from openblip.data.augment import augment
from openblip.data.transform_config import ImageTransformConfig

__all__ = [
    "ImageTransform",
    "evaluation_transform",
    "finetuning_transform",
    "pretraining_transform",
]


_ASPECT = (3 / 4, 4 / 3)
_CROP_TRIES = 10


def pretraining_transform(image_size: int = 224) -> ImageTransform:
    """BLIP pre-training: random resized crop of 20 to 100% of the area, flip, RandAugment of two operations at
    magnitude 5, each applied half the time."""
    return ImageTransform(ImageTransformConfig(image_size=image_size))


def finetuning_transform(image_size: int = 384) -> ImageTransform:
    """BLIP fine-tuning: as pre-training, with crops of 50 to 100% of the area."""
    return ImageTransform(ImageTransformConfig(image_size=image_size, crop_scale=(0.5, 1.0)))


def evaluation_transform(image_size: int | tuple[int, int] = 384) -> ImageTransform:
    """The whole image resized to a square, nothing random."""
    return ImageTransform(ImageTransformConfig(image_size=image_size, crop_scale=None, flip=False, ops=()))


class ImageTransform:
    """Image in, uint8 [3, H, W] out, by an `ImageTransformConfig`."""

    def __init__(self, config: ImageTransformConfig) -> None:
        self.config = config

    @property
    def min_side(self) -> int:
        """Shortest side that a decoded image may have without a loss: what `decode_image` may shrink to.

        The smallest crop is sqrt(3/4 x scale) of the short side; without crops twice the size is requested,
        to stay close to a resize from full resolution.
        """
        if self.config.crop_scale is None:
            return 2 * max(self.config.pixels)
        return math.ceil(max(self.config.pixels) / math.sqrt(_ASPECT[0] * self.config.crop_scale[0]))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        config = self.config
        box = None if config.crop_scale is None else _draw_crop(image.size, config.crop_scale, rng)
        pixels = _resize(image, box, config.pixels)
        if config.flip and rng.random() < 0.5:
            pixels = pixels.flip(2)
        if config.ops:
            for choice in rng.integers(len(config.ops), size=config.num_ops):
                if config.op_probability == 1 or rng.random() < config.op_probability:
                    pixels = augment(pixels, config.ops[choice], config.magnitude, rng)
        return pixels.contiguous()


def _draw_crop(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw (left, top, right, bottom) with a uniform share of the area and a log-uniform aspect ratio.

    Where ten draws do not fit the image, the largest centred box of an allowed aspect is taken.
    """
    width, height = size
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    for _ in range(_CROP_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    aspect = min(max(width / height, _ASPECT[0]), _ASPECT[1])
    crop_width = max(1, min(width, round(height * aspect)))
    crop_height = max(1, min(height, round(width / aspect)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _resize(image: Image.Image, box: tuple[int, int, int, int] | None, size: tuple[int, int]) -> Tensor:
    """Return the box of an RGB image as uint8 [3, *size]."""
    pixels = torch.from_numpy(np.array(image))
    if box is not None:
        left, top, right, bottom = box
        pixels = pixels[top:bottom, left:right]
    if pixels.shape[:2] == size:
        return pixels.permute(2, 0, 1)
    channels_last = pixels.permute(2, 0, 1)[None]  # a view; the fast filter reads this layout
    return functional.interpolate(channels_last, size, mode="bicubic", antialias=True)[0]
