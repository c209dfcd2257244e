"""Training sets on disk, shard by shard, in the layouts that `data.sources` reads back.

    tars      SHARD.tar: NAME.jpg, NAME.txt (a text on each line), NAME.json (the texts and all else)
    parquet   SHARD.parquet: key, image (bytes), captions (a list), image_id, record (JSON)
    jsonl     images/SHARD/NAME.jpg and captions.jsonl, which `merge_parts` makes of the shards' parts
    folder    SHARD/NAME.jpg and SHARD/NAME.txt

Images are copied as they are; what is not encoded yet becomes PNG. A shard appears whole or not at all, and
the same pairs give the same bytes.
"""

from __future__ import annotations

import codecs
import io
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from openblip.core.files import atomic_path, remove_quietly, write_bytes, write_folder
from openblip.core.kinds import LFS
from openblip.core.text import json_bytes, text_bytes
from openblip.data.sample import BrokenSample, ImageLike
from openblip.data.sinks.tables import write_rows
from openblip.data.sources.cells import READ_COLUMNS

__all__ = [
    "LAYOUTS",
    "Layout",
    "Pair",
    "encoded_image",
    "free_names",
    "merge_parts",
    "remove_shard",
    "write_shard",
]

Layout = Literal["tars", "parquet", "jsonl", "folder"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"\0\0\0\x0cjP", "jp2"),
)
_PARQUET = {"key": "string", "image": "bytes", "captions": ["string"], "image_id": "string", "record": "string"}
_IMAGES_IN_GROUP = 128
_RESERVED = READ_COLUMNS | {"key"}


@dataclass(slots=True)
class Pair:
    """An image with the texts to train on."""

    name: str
    """of its files, unique in the set"""
    image: ImageLike
    texts: list[str]
    image_id: str
    record: dict[str, Any] = field(default_factory=dict)
    """what else is known of it: key, scores, origins; JSON. See `free_names`."""

    def fields(self) -> dict[str, Any]:
        """The record with texts and image id, as JSON files hold it."""
        return {**self.record, "captions": self.texts, "image_id": self.image_id}

    def lines(self) -> bytes:
        """The texts as a .txt file holds them."""
        data = text_bytes("".join(" ".join(text.split()) + "\n" for text in self.texts))
        # A byte-order mark tells a text that begins as git-lfs' pointers do from a pointer.
        return codecs.BOM_UTF8 + data if data.startswith(LFS) else data


def free_names(meta: Mapping[str, Any], taken: Collection[str]) -> dict[str, Any]:
    """`meta` with "meta_" before each name that a reader of the set would take for a text, an image or an id.

    Args:
        taken: names of what else the record holds.
    """
    free: dict[str, Any] = {}
    for name, value in meta.items():
        given = name
        while given in taken or given.strip().lower() in _RESERVED or (given != name and given in meta):
            given = f"meta_{given}"
        free[given] = value
    return free


def encoded_image(image: ImageLike) -> tuple[bytes, str]:
    """Return an encoded file's bytes and its ending.

    Raises:
        BrokenSample: the file cannot be read.
    """
    if isinstance(image, Path):
        try:
            image = image.read_bytes()
        except OSError as error:
            raise BrokenSample("unreadable", str(image), str(error)) from error
    if isinstance(image, bytes):
        return image, _ending(image)
    opened = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    opened.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue(), "png"


def _ending(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    return next((ending for magic, ending in _MAGIC if data.startswith(magic)), "jpg")


def write_shard(layout: Layout, folder: Path, parts: Path, name: str, pairs: Iterable[Pair]) -> None:
    """Write shard `name` of a training set in place of what stood there; without pairs nothing stands there.

    Args:
        folder: of the training set.
        parts: where the lines of captions.jsonl are kept until `merge_parts` (layout "jsonl").
        pairs: taken one by one, so that a shard's images are never all in memory.

    Raises:
        BrokenSample: an image file has gone.
        UserError: the disk is full.
    """
    pairs = iter(pairs)
    first = next(pairs, None)
    if first is None:
        remove_shard(layout, folder, parts, name)
        return
    pairs = chain([first], pairs)
    if layout == "tars":
        with atomic_path(folder / f"{name}.tar") as temporary, tarfile.open(temporary, "w") as tar:
            for pair in pairs:
                _add_to_tar(tar, pair)
    elif layout == "parquet":
        rows = (
            {
                "key": pair.name,
                "image": encoded_image(pair.image)[0],
                "captions": pair.texts,
                "image_id": pair.image_id,
                "record": json_bytes(pair.record, default=str).decode(),
            }
            for pair in pairs
        )
        write_rows(folder / f"{name}.parquet", rows, _PARQUET, rows_in_group=_IMAGES_IN_GROUP)
    elif layout == "folder":
        with write_folder(folder / name) as target:
            for pair in pairs:
                text = (target / _write_image(target, pair)).with_suffix(".txt")
                text.write_bytes(pair.lines())
    else:
        lines = []
        with write_folder(folder / "images" / name) as target:
            for pair in pairs:
                image = f"images/{name}/{_write_image(target, pair)}"
                lines.append(json_bytes({"image": image, **pair.fields()}, default=str) + b"\n")
        write_bytes(parts / f"{name}.jsonl", b"".join(lines))


def _write_image(folder: Path, pair: Pair) -> str:
    """The file's name in `folder`."""
    data, ending = encoded_image(pair.image)
    (folder / f"{pair.name}.{ending}").write_bytes(data)
    return f"{pair.name}.{ending}"


def remove_shard(layout: Layout, folder: Path, parts: Path, name: str) -> None:
    """Remove what `write_shard` wrote, if it is there."""
    if layout == "jsonl":
        remove_quietly(parts / f"{name}.jsonl")
        remove_quietly(folder / "images" / name)
    else:
        remove_quietly(folder / (name if layout == "folder" else f"{name}.{layout.removesuffix('s')}"))


def merge_parts(folder: Path, parts: Path) -> None:
    """Make captions.jsonl of the shards' parts, in order."""
    with atomic_path(folder / "captions.jsonl") as temporary, open(temporary, "wb") as file:
        for part in sorted(parts.glob("*.jsonl")):
            file.write(part.read_bytes())


def _add_to_tar(tar: tarfile.TarFile, pair: Pair) -> None:
    for ending, data in _members(pair):
        info = tarfile.TarInfo(f"{pair.name}.{ending}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _members(pair: Pair) -> Iterator[tuple[str, bytes]]:
    data, ending = encoded_image(pair.image)
    yield ending, data
    yield "txt", pair.lines()
    yield "json", json_bytes({"key": pair.name, **pair.fields()}, default=str)
