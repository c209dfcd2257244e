"""What is read to compute features of: the images of a run that have none, one by one, and crops of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.sharing import is_first
from openblip.data.sample import Sample
from openblip.data.sources.base import Source
from openblip.data.stream import Loader
from openblip.data.transform_config import ImageTransformConfig
from openblip.data.transforms import ImageTransform, evaluation_transform
from openblip.tasks.feature_files import Span

__all__ = ["PLACE", "CropTransform", "Crops", "Pending", "Row", "Rows"]

PLACE = "feature_place"
"""in the meta of a sample: its place among all"""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Which crops of an image are cached: the whole image, then random ones that depend on the seed and its key."""

    count: int = 1
    """the whole image among them"""
    scale: tuple[float, float] = (0.5, 1.0)
    """range of a random crop's share of the area"""
    flip: bool = True
    """mirror half of the random crops; not where captions speak of left and right"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"the crops of an image count the whole image too, and cannot be {self.count}")
        if self.seed < 0:
            raise UserError(f"the seed of crops cannot be negative, and is {self.seed}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            low, high = self.scale
            raise UserError(f"the share of the area of crops must rise within 0 to 1, not from {low:g} to {high:g}")

    def describe(self) -> dict[str, Any]:
        """What matters of it, as plain data."""
        drawn = {"scale": list(self.scale), "flip": self.flip, "seed": self.seed}
        return {"count": self.count, **(drawn if self.count > 1 else {})}


class Row(NamedTuple):
    """An image to compute."""

    place: int
    """among all"""
    key: str
    images: Tensor
    """uint8 [C, 3, H, W]"""


class Rows:
    """The images of a loader one by one, whatever batches it makes."""

    def __init__(self, loader: Loader) -> None:
        self._rows = (
            Row(meta[PLACE], key, images)
            for batch in loader
            for meta, key, images in zip(batch.meta, batch.keys, batch.images, strict=True)
        )
        self._next: Row | None = None

    def take(self, most: int, before: int) -> list[Row]:
        """The next ones at places lower than `before`; fewer than `most` only where these are all."""
        taken: list[Row] = []
        while len(taken) < most:
            row = self._next or next(self._rows, None)
            if row is None or row.place >= before:
                self._next = row
                break
            taken.append(row)
            self._next = None
        return taken


class Pending(Source):
    """The samples of another source that are to be computed; each says its place among all.

    Args:
        spans: of places among all, of which `start` is that of the source's first sample.
    """

    def __init__(self, source: Source, spans: Sequence[Span], start: int) -> None:
        super().__init__()
        self.name, self.num_images = source.name, source.num_images
        self.bad_rows = source.bad_rows if is_first() else []
        self._source, self._start = source, start
        self._places = np.concatenate([np.zeros(0, np.int64), *(np.arange(*span) for span in spans)])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        place = int(self._places[index])
        sample = self._source[place - self._start]
        return replace(sample, meta={PLACE: place})


class CropTransform:
    """An image to uint8 [C, 3, H, W]: the whole image, then random crops of it."""

    def __init__(self, pixels: tuple[int, int], crops: Crops) -> None:
        self._whole = evaluation_transform(pixels)
        config = ImageTransformConfig(image_size=pixels, crop_scale=crops.scale, flip=crops.flip, ops=())
        self._random = [ImageTransform(config)] * (crops.count - 1)

    @property
    def min_side(self) -> int:
        """As `ImageTransform.min_side`."""
        return max(transform.min_side for transform in (self._whole, *self._random))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        return torch.stack([transform(image, rng) for transform in (self._whole, *self._random)])
