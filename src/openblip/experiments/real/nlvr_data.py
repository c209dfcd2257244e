"""The NLVR data as pairs of images, and what is read off the pixels of its training images.

    write_data(data, out / "data")      # images, and captions, statements, train, dev, test, control as .jsonl

An image of NLVR shows three boxes. Boxes 1 and 2 become one image, box 3 beside a grey blank the other, so that a
sentence is about two images as in NLVR2. Only training images are parsed for captions and statements.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from openblip.core.files import write_folder, write_text
from openblip.experiments.real.nlvr_statements import SIDE, Box, Item, Scene, describe

__all__ = ["FILES", "SPLITS", "items", "write_data"]

SPLITS = {"train": ("train_examples", "train_hidden"), "dev": ("dev",), "test": ("test",)}
FILES = ("captions", "statements", "train", "dev", "test", "control")
_STARTS = (0, 150, 300)
"""columns where the boxes begin"""
_GREY = 128
_RGB = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
_NEAR, _SMALLEST = 150, 6
"""summed distance to a colour that still is that colour; sides in pixels below which something is no item"""
_STATEMENTS, _TRIES = 8, 150
"""for a pair of images; fewer where so many tries give no balanced ones"""
_LISTS, _TRUE = 4, 3
"""captions of an image: how often its list of items, and true statements about it"""


def items(pixels: np.ndarray) -> tuple[Item, ...]:
    """The items of one box, uint8 [SIDE, SIDE, 3]: areas of one colour; how full one is tells its shape."""
    return _items(pixels.tobytes())


@cache
def _items(pixels: bytes) -> tuple[Item, ...]:
    # Cached because the six orders of an example show the same boxes.
    box = np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE, 3).astype(int)
    found = []
    for colour, rgb in _RGB.items():
        for area, left, top, right, bottom in _areas(np.abs(box - rgb).sum(2) < _NEAR):
            if min(right - left, bottom - top) >= _SMALLEST:
                full = area / ((right - left) * (bottom - top))
                shape = "square" if full > 0.9 else "circle" if full > 0.68 else "triangle"
                found.append(Item(colour, shape, left, top, right, bottom))
    return tuple(found)


def _areas(mask: np.ndarray) -> Iterator[tuple[int, int, int, int, int]]:
    """Pixels, left, top, right and bottom of each area of `mask` [H, W] whose pixels touch by their sides."""
    pending = set(map(tuple, np.argwhere(mask).tolist()))
    while pending:
        reached = [pending.pop()]
        for y, x in reached:
            beside = {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & pending
            pending -= beside
            reached += beside
        ys, xs = zip(*reached, strict=True)
        yield len(reached), min(xs), min(ys), max(xs) + 1, max(ys) + 1


def write_data(data: Path, folder: Path, *, examples: int = 0) -> None:
    """Write the images and the rows of `FILES` to `folder`, which appears whole; nothing if it is there.

    Args:
        data: the folder of the tars, `KEY.png` and `KEY.json` for each image.
        examples: rows of each tar at most; 0 takes them all.
    """
    if folder.exists():
        return
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    writer = _Writer()
    with write_folder(folder) as temporary:
        for split, tars in SPLITS.items():
            for tar in tars:
                (temporary / tar).mkdir()
                for image, told in _read(data / f"{tar}.tar", examples):
                    key, boxes = told["key"], [image[:, start : start + SIDE] for start in _STARTS]
                    names = [f"{tar}/{key}-img{number}.png" for number in (0, 1)]
                    blank = np.full_like(boxes[2], _GREY)
                    for name, pair in zip(names, ((boxes[0], boxes[1]), (boxes[2], blank)), strict=True):
                        Image.fromarray(np.concatenate(pair, axis=1)).save(temporary / name, compress_level=1)
                    row = {"images": names, "sentence": told["sentence"], "label": told["label"]}
                    rows[split].append({**row, "identifier": f"{tar}-{told['identifier']}"})
                    if split == "train":
                        found = [items(box) for box in boxes]
                        rows["statements"] += writer.statements(names, found)
                        rows["captions"] += writer.captions(names, found)
        test = rows["test"]
        others = test[len(test) // 2 :] + test[: len(test) // 2]
        rows["control"] = [{**row, "images": other["images"]} for row, other in zip(test, others, strict=True)]
        for name, lines in rows.items():
            write_text(temporary / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in lines))


class _Writer:
    """Writes captions and statements of one training example after the other."""

    def __init__(self) -> None:
        self._random = Random(0)
        self._labels: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}

    def statements(self, images: list[str], boxes: Sequence[Box]) -> list[dict[str, Any]]:
        """Each sentence is used about as often true as false, so that its words alone say nothing."""
        scene, rows = Scene(self._random, boxes), []
        for _ in range(_TRIES):
            text, label = scene.statement()
            if self._labels[label][text] <= self._labels[not label][text]:
                self._labels[label][text] += 1
                rows.append({"images": images, "sentence": text, "label": label})
                if len(rows) == _STATEMENTS:
                    break
        return rows

    def captions(self, images: list[str], boxes: Sequence[Box]) -> list[dict[str, Any]]:
        rows = []
        for image, shown in zip(images, (boxes[:2], boxes[2:]), strict=True):
            scene, texts = Scene(self._random, shown), [describe(shown)] * _LISTS
            while len(texts) < _LISTS + _TRUE:
                text, label = scene.statement()
                if label:
                    texts.append(text)
            rows.append({"image": image, "caption": texts})
        return rows


def _read(tar: Path, examples: int) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Pixels [H, W, 3] of each image of a tar, and its record with "key"."""
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, kind = member.name.rpartition(".")
            file = archive.extractfile(member)
            if file is not None:
                parts.setdefault(key, {})[kind] = file.read()
    for key, part in list(parts.items())[: examples or None]:
        image = np.asarray(Image.open(io.BytesIO(part["png"])).convert("RGB"))
        yield image, {**json.loads(part["json"]), "key": key}
