"""Helpers of the loader's tests: sources in memory, and what a loader delivers as plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from openblip.data.sample import Batch, BrokenSample, Sample
from openblip.data.sources import Source
from openblip.data.stream import Loader
from openblip.data.transform_config import ImageTransformConfig
from openblip.data.transforms import ImageTransform

PLAIN = ImageTransform(ImageTransformConfig(image_size=8, crop_scale=None, flip=False, ops=()))
RANDOM = ImageTransform(ImageTransformConfig(image_size=8, crop_scale=(0.2, 1.0)))

Row = tuple[bytes, str, str]


class NoisyImages(Source):
    """`count` noisy images with three captions each; `bad` numbers give these bytes in place of an image."""

    def __init__(self, count: int, name: str = "memory", bad: dict[int, bytes] | None = None) -> None:
        super().__init__()
        self.name, self.count, self.bad = name, count, bad or {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        key = str(index)
        if index in self.bad:
            return Sample(key, (self.bad[index],), ("a broken one",), key)
        noise = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return Sample(key, (noise,), texts_of(index), key)


class Failing(Source):
    """Every sample is missing."""

    name = "gone"

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Sample:
        raise BrokenSample("missing", f"{index}.jpg", "there is no file")


def texts_of(index: int) -> tuple[str, ...]:
    return tuple(f"caption {letter} of {index}" for letter in "abc")


def make(source: Source | list[Source], batch_size: int = 4, **settings: object) -> Loader:
    transform: Callable[..., object] = settings.pop("transform", RANDOM)  # type: ignore[assignment]
    return Loader(source, transform, batch_size, **settings)  # type: ignore[arg-type]


def rows(batches: Iterable[Batch]) -> list[Row]:
    """Return (bytes of the pixels, text, key) of every sample."""
    return [row for batch in batches for row in rows_of(batch)]


def rows_of(batch: Batch) -> list[Row]:
    return [
        (batch.images[place].numpy().tobytes(), batch.texts[place], batch.keys[place])
        for place in range(len(batch))
    ]


def keys(batches: Iterable[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]
