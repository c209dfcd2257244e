"""Images to index: in folders, captions files, tars and published datasets, each with where it lies on disk.

An index reads images again (to re-rank and to show them), so that each must lie in a file or a tar.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from openblip.core.errors import UserError
from openblip.core.places import NAMED, QUERY, local_path
from openblip.data.formats import IMAGE_SUFFIXES, ending_of
from openblip.data.image_inputs import TarMember, find_image_inputs
from openblip.data.sample import BrokenSample
from openblip.data.sources.base import Source
from openblip.data.sources.open import open_source
from openblip.data.sources.tars import Member, TarSource
from openblip.index.catalog import Record

__all__ = ["Entry", "Place", "absolute_spec", "date_of", "read_image"]

_EXIF, _TAKEN, _CHANGED = 0x8769, 0x9003, 0x0132


@dataclass(slots=True)
class Entry:
    """An image that is there to be indexed."""

    record: Record
    """with all that costs no look into the file"""
    describe: Callable[[], tuple[tuple[str, ...], dict[str, Any]]] = field(default=lambda: ((), {}))
    """gives captions and metadata"""


def absolute_spec(spec: str) -> str:
    """A data spec that means the same in every working directory."""
    match = QUERY.match(spec)
    place = local_path(spec if match is None or Path(spec).exists() else match["path"])
    if (
        "://" in place
        or place.startswith(("hf:", "world:"))
        or (NAMED.fullmatch(place) and not Path(place).exists())
    ):
        return spec
    settings = "" if match is None or Path(spec).exists() else f"?{match['query']}"
    return os.path.abspath(os.path.expanduser(place)) + settings


class Place:
    """The images of a data spec, an image or a glob of images; iterating gives each, or why it cannot be read.

    Raises:
        UserError: nothing is there.
    """

    def __init__(self, spec: str) -> None:
        self.spec = absolute_spec(spec)
        self.left_out: list[BrokenSample] = []
        if ending_of(self.spec) in IMAGE_SUFFIXES:
            found = find_image_inputs([self.spec])
            self.left_out += found.left_out.broken()
            self._files: list[str] | None = [image.name for image in found]
            return
        self._files, self._source = None, open_source(self.spec)
        self.left_out += self._source.bad_rows

    def __len__(self) -> int:
        return len(self._source if self._files is None else self._files)

    def __iter__(self) -> Iterator[Entry | BrokenSample]:
        for index in range(len(self)):
            try:
                yield (
                    _entry(self._source, index) if self._files is None else Entry(_file(Path(self._files[index])))
                )
            except BrokenSample as broken:
                yield broken


def _entry(source: Source, index: int) -> Entry:
    if isinstance(source, TarSource):
        tar, key, member = source.member(index)
        path, status = os.path.abspath(tar), os.stat(tar)
        record = Record(
            path=f"{path}/{key}",
            place=0,
            file=path,
            start=member.offset,
            length=member.size,
            size=member.size,
            modified=status.st_mtime_ns,
        )
        return Entry(record, lambda: _described(source, index))
    sample = source[index]
    if not isinstance(sample.image, Path):
        raise UserError(
            f"the images of {source.name} lie neither in files of their own nor in tars; write them there first"
        )
    return Entry(_file(sample.image), lambda: (sample.texts, sample.meta))


def _described(source: Source, index: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    sample = source[index]
    return sample.texts, sample.meta


def _file(path: Path) -> Record:
    place = os.path.abspath(path)
    try:
        status = os.stat(place)
    except FileNotFoundError as error:
        raise BrokenSample("missing", place, "there is no such file") from error
    except OSError as error:
        raise BrokenSample("unreadable", place, str(error)) from error
    return Record(
        path=place, place=0, file=place, start=None, length=None, size=status.st_size, modified=status.st_mtime_ns
    )


def read_image(record: Record) -> bytes:
    """The encoded bytes of an image.

    Raises:
        BrokenSample: "missing", "unreadable" or "truncated".
    """
    try:
        if record.start is None or record.length is None:
            return Path(record.file).read_bytes()
        data = TarMember(Path(record.file), Member("", record.start, record.length)).read()
    except FileNotFoundError as error:
        raise BrokenSample("missing", record.path, "there is no such file") from error
    except OSError as error:
        raise BrokenSample("unreadable", record.path, str(error)) from error
    if len(data) < record.length:
        raise BrokenSample("truncated", record.path, f"{record.file} has become shorter")
    return data


def date_of(data: bytes, modified: int) -> str:
    """When an image was taken, by its EXIF; else when its file was modified: "2024-05-01 12:30:00", local time."""
    try:
        exif = Image.open(BytesIO(data)).getexif()
        told = exif.get_ifd(_EXIF).get(_TAKEN) or exif.get(_CHANGED) or ""
        return datetime.strptime(str(told).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat(" ")
    except Exception:  # noqa: BLE001  whatever is wrong with it, decoding says
        return datetime.fromtimestamp(modified / 1e9).isoformat(" ", "seconds")
