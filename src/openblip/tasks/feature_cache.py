"""Cached features in training: looked up by the names of their images and read in place of pixels.

cache = FeatureCache.open(["features/"], describe_tower(tower))     # refuses those of another tower or input
source = cache.source(open_source("photos/"))                       # samples that name their features
loader = Loader([source], DrawCrop(), ...)
for batch in loader:
    features = cache.read(batch.meta, batch.images)                 # [B, N, D], of each image a drawn crop
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.core.compute import DTYPES
from openblip.core.errors import UserError
from openblip.core.fingerprint import fingerprint
from openblip.core.text import read_json
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources.base import Source
from openblip.data.sources.digest import Digest
from openblip.models.tower import FrozenTower
from openblip.tasks.feature_files import ShardHead, open_shard, shard_files

__all__ = ["FORMAT", "DrawCrop", "FeatureCache", "describe_tower", "read_description", "refuse_others"]

FORMAT = "openblip-features-2"
_ROW = "feature_row"
_MOST_OPEN = 512
"""shards that are mapped at a time"""


def describe_tower(tower: FrozenTower) -> dict[str, Any]:
    """What tells features of one tower and input from others, as plain data; `vision` is a name for messages."""
    return {
        "vision": tower.config.source,
        "input": tower.describe_input(),
        "drop_layers": tower.config.drop_layers,
        "width": tower.width,
        "dtype": str(tower.dtype).removeprefix("torch."),
        "fingerprint": fingerprint(tower.encoder.named_parameters()),
    }


def refuse_others(found: dict[str, Any], wanted: dict[str, Any], folder: Path, advice: str) -> None:
    """Refuse a description that differs from the one that is wanted in anything but the tower's name.

    Raises:
        UserError: names what differs.
    """
    flat, asked = (described | described["input"] for described in (found, wanted))
    for name, value in asked.items():
        if name in ("vision", "input") or flat.get(name) == value:
            continue
        if name == "fingerprint":
            raise UserError(
                f"the features in {folder} are those of another vision tower ({found['vision']}, fingerprint "
                f"{found['fingerprint'][:8]}, this one's is {value[:8]}); {advice}"
            )
        raise UserError(f"{folder} holds other features: its {name} is {flat.get(name)}, not {value}; {advice}")


def read_description(folder: Path) -> dict[str, Any] | None:
    """cache.json of a folder; None where there is none.

    Raises:
        UserError: it cannot be read, or is of another version.
    """
    file = folder / "cache.json"
    if not file.is_file():
        return None
    advice = "remove the folder and cache the features again"
    try:
        found = read_json(file)
    except UserError as error:
        raise UserError(f"{error}; {advice}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{file} is of another version of OpenBLIP; {advice}")
    return found


@dataclass
class FeatureCache:
    """Features by the keys of their samples."""

    rows: dict[str, tuple[int, int]]
    """for each key the shard and the row in it"""
    shards: list[tuple[Path, int]]
    """the file of each, and how many crops of an image it holds"""
    shape: tuple[int, int]
    """of one image's features, [N, D]"""
    dtype: torch.dtype
    """that the tower computes in, and `read` gives"""

    def __post_init__(self) -> None:
        self._open = functools.lru_cache(_MOST_OPEN)(open_shard)

    @classmethod
    def open(cls, folders: Sequence[Path | str], wanted: dict[str, Any]) -> FeatureCache:
        """Read the keys of `folders`.

        Args:
            wanted: `describe_tower` of the tower that training uses.

        Raises:
            UserError: a folder holds no features, those of another tower or input, or a key stands in two of them.
        """
        rows: dict[str, tuple[int, int]] = {}
        shards: list[tuple[Path, int]] = []
        shape = (0, 0)
        for folder in map(Path, folders):
            found = read_description(folder)
            if found is None:
                raise UserError(f"{folder} holds no features; openblip cache-features makes them")
            same = found["tower"]["dtype"] == wanted["dtype"]
            advice = "cache them again" if same else f"cache them again with --dtype {wanted['dtype']}"
            refuse_others(found["tower"], wanted, folder, advice)
            for head in map(ShardHead.read, shard_files(folder)):
                for row, key in enumerate(head.keys):
                    if key in rows:
                        raise UserError(f'the key "{key}" stands twice in the features; train on each by itself')
                    rows[key] = len(shards), row
                if head.keys:
                    shape = head.shape[1:]
                shards.append((head.path, head.shape[0]))
        if not rows:
            raise UserError(f"{folders[0]} holds no features yet")
        return cls(rows, shards, shape, DTYPES[wanted["dtype"]])

    def source(self, source: Source) -> Source:
        """`source` with samples that name their features and have no images."""
        return _CachedSource(source, self.rows)

    def read(self, meta: Sequence[dict[str, Any]], draws: Tensor | None = None) -> Tensor:
        """Features [B, N, D] of the samples with these `meta`.

        Args:
            draws: int64 [B] of `DrawCrop`; None reads the whole image of each.
        """
        features = torch.empty(len(meta), *self.shape, dtype=self.dtype)
        for place, one in enumerate(meta):
            number, row = self.rows[one[_ROW]]
            path, crops = self.shards[number]
            crop = 0 if draws is None else int(draws[place]) % crops
            features[place] = self._open(path)[row, crop]
        return features


class _CachedSource(Source):
    """Samples of another source; a tiny grey image stands for each that has features."""

    def __init__(self, source: Source, rows: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.name, self.blocks, self.window = source.name, source.blocks, source.window
        self.bad_rows = source.bad_rows
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source.without_drawing(index)
        key = sample.key if sample.key in self._rows else sample.key.rpartition("#")[0]  # one of several captions
        if key not in self._rows:
            raise BrokenSample("missing", sample.key, "there are no features of it on disk")
        return replace(sample, images=(np.zeros((8, 8, 3), np.uint8),), meta={**sample.meta, _ROW: key})

    def text_counts(self) -> np.ndarray:
        return self._source.text_counts()

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        before, digest.sizes = digest.sizes, False
        self._source.digest(digest, span, texts=texts)
        digest.sizes = before

    def describe(self) -> dict[str, Any]:
        return self._source.describe()


class DrawCrop:
    """The transform of images that are not looked at: a number that chooses among the crops of the image."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """int64, a scalar, for `FeatureCache.read`."""
        return torch.tensor(int(rng.integers(2**31)))
