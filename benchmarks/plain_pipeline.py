"""The loader's peer: tars read in order, Pillow, torchvision's transforms, torch's DataLoader.

This is how the original repository's data set makes a tensor (open, convert to RGB, transform, clean the
caption), over tars as webdataset reads them: each worker goes through its own tars from front to back.
"""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from openblip.core.errors import require
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD

__all__ = ["make_loader", "make_transform"]

transforms = require("torchvision.transforms", "benchmarks")
LEVEL = 0.5
"""strength of the operations: magnitude 5 of 10"""
GREY = (128, 128, 128)


def make_transform(kind: str, size: int) -> Callable[[Image.Image], Tensor]:
    """The transform called "evaluation", "crop and flip" or "pre-training", as torchvision composes it."""
    cubic = transforms.InterpolationMode.BICUBIC
    if kind == "evaluation":
        head: list[Callable[..., object]] = [transforms.Resize((size, size), interpolation=cubic)]
    else:
        head = [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=cubic),
            transforms.RandomHorizontalFlip(),
        ]
    if kind == "pre-training":
        head.append(RandAugment())
    return transforms.Compose([*head, transforms.ToTensor(), transforms.Normalize(IMAGE_MEAN, IMAGE_STD)])


class RandAugment:
    """Two of ten operations at magnitude 5, on the Pillow image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        for _ in range(2):
            image = random.choice(OPERATIONS)(image, random.choice((-1.0, 1.0)))
        return image


def _affine(image: Image.Image, matrix: Sequence[float]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BILINEAR, fillcolor=GREY
    )


OPERATIONS: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda image, sign: image,
    lambda image, sign: ImageOps.autocontrast(image),
    lambda image, sign: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * LEVEL),
    lambda image, sign: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * LEVEL),
    lambda image, sign: ImageOps.equalize(image),
    lambda image, sign: _affine(image, (1, 0.3 * LEVEL * sign, 0, 0, 1, 0)),
    lambda image, sign: _affine(image, (1, 0, 0, 0.3 * LEVEL * sign, 1, 0)),
    lambda image, sign: _affine(image, (1, 0, 10 * LEVEL * sign, 0, 1, 0)),
    lambda image, sign: _affine(image, (1, 0, 0, 0, 1, 10 * LEVEL * sign)),
    lambda image, sign: image.rotate(30 * LEVEL * sign, Image.Resampling.BILINEAR, fillcolor=GREY),
)


class TarPairs(IterableDataset[tuple[Tensor, str]]):
    """(image, caption) of tars in order; each worker has its share of the tars."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = list(paths), transform

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for path in self.paths[number::count]:
            fields: dict[str, bytes] = {}
            with tarfile.open(path) as tar:
                for info in tar:
                    file = tar.extractfile(info)
                    assert file is not None
                    fields[info.name.rpartition(".")[2]] = file.read()
                    if len(fields) == 3:  # jpg, json, txt
                        image = Image.open(io.BytesIO(fields["jpg"])).convert("RGB")
                        yield self.transform(image), clean(fields["txt"].decode())
                        fields = {}


def clean(text: str) -> str:
    """A caption as the original repository cleans it."""
    text = re.sub(r"([.!\"()*#:;~])", " ", text.lower())
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:30])


def make_loader(folder: Path, kind: str, size: int, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Batches of (float32 [B, 3, S, S] normalised, captions)."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    pairs = TarPairs(sorted(folder.glob("*.tar")), make_transform(kind, size))
    return DataLoader(pairs, batch_size, num_workers=num_workers, persistent_workers=num_workers > 0)
