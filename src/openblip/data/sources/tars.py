"""WebDataset tars, as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json one after the other.

The headers of each tar are read once when it is opened (a few microseconds for each file in it), after which
any sample is one read at a known place: shuffling, resuming and sharing between workers need no more than a
number. Each tar is a block, so that a disk or network drive reads a few tars at a time.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openblip.core.errors import UserError, nearest
from openblip.data.images import IMAGE_SUFFIXES
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources.base import TEXT_COLUMNS, Source, SourceConfig, as_texts, string_array
from openblip.data.sources.digest import MOST_TEXTS, Digest, pieces, spread

__all__ = ["Member", "TarSource", "read_members"]

_BLOCK = 512
_READ_AHEAD = 1 << 13
_LONGEST_HEADER = 1 << 20
_MAX_OPEN = 256


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int
    """Of its first byte."""
    size: int


def read_members(path: Path) -> Iterator[Member]:
    """Yield the regular files of a tar by reading headers only (ustar, GNU and pax).

    Raises:
        BrokenSample: "truncated" or "unreadable" where the tar stops making sense; what came before is good.
    """
    total = os.path.getsize(path)
    with open(path, "rb", buffering=_READ_AHEAD) as file:
        position, long_name, long_size = 0, "", -1
        while position + _BLOCK <= total:
            file.seek(position)
            header = file.read(_BLOCK)
            if not header.strip(b"\0"):
                return
            if not _checksum_holds(header):
                raise BrokenSample("unreadable", path.name, f"no tar header at byte {position}")
            kind, size = header[156:157], _number(header[124:136])
            start = position + _BLOCK
            if kind in b"xL" and kind:
                if size > _LONGEST_HEADER:
                    raise BrokenSample("unreadable", path.name, f"a header of {size} bytes at byte {position}")
                content = file.read(size)
                if kind == b"L":
                    long_name = content.rstrip(b"\0").decode("utf-8", "replace")
                else:
                    fields = _pax_fields(content)
                    long_name = fields.get("path", long_name)
                    long_size = int(fields.get("size", -1))
            elif kind in (b"0", b"\0", b"7"):
                size = long_size if long_size >= 0 else size
                if start + size > total:
                    raise BrokenSample("truncated", path.name, f"the tar is cut inside {_name(header)}")
                yield Member(long_name or _name(header), start, size)
                long_name, long_size = "", -1
            else:
                long_name, long_size = "", -1  # a folder, a link or a global header: nothing to read
            position = start + -(-size // _BLOCK) * _BLOCK
        raise BrokenSample("truncated", path.name, "the tar has no end mark: it was cut, or never finished")


def _number(digits: bytes) -> int:
    if digits[0] & 0x80:  # base 256, for sizes of 8 GiB and more
        return int.from_bytes(digits, "big") & ((1 << 95) - 1)
    try:
        return int(digits.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return 0


def _checksum_holds(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[263:265] == b"00" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _pax_fields(content: bytes) -> dict[str, str]:
    fields, place = {}, 0
    while place < len(content):
        length, _, _ = content[place:].partition(b" ")
        if not length.isdigit() or not int(length):
            break
        name, _, value = content[place + len(length) + 1 : place + int(length) - 1].partition(b"=")
        fields[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        place += int(length)
    return fields


class TarSource(Source):
    """Samples of one or more tars on a local (or mounted) disk.

    Index arrays hold, for N samples: the tar, and where picture, text and JSON lie (offset and size; size -1
    where there is none).
    """

    def __init__(self, paths: Sequence[Path], config: SourceConfig, *, num_missing: int = 0) -> None:
        super().__init__()
        self.name = config.name or config.path
        self._paths = [str(path) for path in paths]
        self._config = config
        self._num_missing = num_missing
        self._text_endings = (config.text_column.lower(),) if config.text_column else ("txt", "caption", "cap")
        keys: list[str] = []
        rows: list[tuple[int, ...]] = []
        sizes: list[int] = []
        parts: list[tuple[pa.Array, np.ndarray]] = []
        for number, path in enumerate(paths):
            for key, places in self._samples_of(path):
                keys.append(key)
                rows.append((number, *places))
            sizes.append(len(keys))
            parts.append((string_array(keys), np.array(rows, np.int64).reshape(-1, 7)))
            keys, rows = [], []
        self._keys = pa.concat_arrays([part[0] for part in parts])
        self._index = np.concatenate([part[1] for part in parts])
        if not len(self._index):
            why = f" ({self.bad_rows[0]})" if self.bad_rows else ""
            raise UserError(f"the tars of {config.path} hold no pictures{why}")
        self._check_fields()
        ends = np.cumsum(sizes)
        self.blocks = [range(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True) if size]

    def _samples_of(self, path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (key, (image offset, size, text offset, size, json offset, size)) of one tar."""

        def key_of(member: Member) -> str:
            folder, name = os.path.split(member.name)
            return os.path.join(folder, name.split(".", 1)[0])

        seen: set[str] = set()
        for key, members in itertools.groupby(self._members(path), key=key_of):
            if not key or key.endswith("/"):
                continue  # hidden files, as some archivers add them
            if key in seen:
                detail = "the tar holds this key twice; its first files are used"
                self.bad_rows.append(BrokenSample("duplicate-key", f"{path.stem}/{key}", detail))
                continue
            seen.add(key)
            places = [0, -1, 0, -1, 0, -1]
            for member in members:
                ending = member.name[len(key) + 1 :].lower()
                if f".{ending.rsplit('.', 1)[-1]}" in IMAGE_SUFFIXES:
                    places[0:2] = member.offset, member.size
                elif ending in self._text_endings:
                    places[2:4] = member.offset, member.size
                elif ending == "json":
                    places[4:6] = member.offset, member.size
            if places[1] >= 0:
                yield key, tuple(places)
            elif places[3] >= 0 or places[5] >= 0:
                self.bad_rows.append(BrokenSample("missing", f"{path.stem}/{key}", "no picture in the tar"))

    def _members(self, path: Path) -> Iterator[Member]:
        try:
            yield from read_members(path)
        except BrokenSample as broken:
            self.bad_rows.append(broken)
        except OSError as error:
            self.bad_rows.append(BrokenSample("unreadable", path.name, str(error)))

    def _check_fields(self) -> None:
        """Refuse a text or id column that the first samples with JSON do not know."""
        config = self._config
        asked = [name for name in (config.text_column, config.id_column, *config.meta_columns) if name]
        with_json = np.flatnonzero(self._index[:, 6] >= 0)[:100]
        seen: set[str] = set()
        for sample in with_json:
            with suppress(BrokenSample):
                seen |= self._json(int(sample), self._keys[int(sample)].as_py()).keys()
        if (self._index[:100, 4] >= 0).any():
            seen |= set(self._text_endings)
        for name in asked:
            if name not in seen:
                raise UserError(f'the samples of {config.path} have no "{name}"{nearest(name, seen)}')

    def _read(self, tar: int, offset: int, size: int, key: str) -> bytes:
        try:
            file = _open(self._paths[tar], os.getpid())
            data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise BrokenSample("unreadable", key, f"{self._paths[tar]}: {error}") from error
        if len(data) < size:
            raise BrokenSample("truncated", key, f"{self._paths[tar]} has become shorter")
        return data

    def _json(self, sample: int, key: str) -> dict[str, Any]:
        tar, *_, offset, size = (int(number) for number in self._index[sample])
        if size < 0:
            return {}
        try:
            content = json.loads(self._read(tar, offset, size, key))
        except ValueError as error:
            raise BrokenSample("bad-text", key, f"its JSON cannot be read: {error}") from error
        return content if isinstance(content, dict) else {}

    def _texts(self, sample: int, key: str, fields: dict[str, Any] | None) -> tuple[str, ...]:
        tar, _, _, offset, size, _, _ = (int(number) for number in self._index[sample])
        if size >= 0:
            try:
                lines = self._read(tar, offset, size, key).decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise BrokenSample("bad-text", key, "its text is not UTF-8") from error
            texts = tuple(line.strip() for line in lines if line.strip())
            if texts:
                return texts
        fields = self._json(sample, key) if fields is None else fields
        if self._config.text_column:
            return as_texts(fields.get(self._config.text_column))
        return next((texts for name in TEXT_COLUMNS if (texts := as_texts(fields.get(name)))), ())

    def text_counts(self) -> np.ndarray:
        def count(sample: int) -> int:
            try:
                return len(self._texts(sample, self._keys[sample].as_py(), None))
            except BrokenSample:
                return 0

        return np.fromiter(map(count, range(len(self))), np.int64, len(self))

    def __len__(self) -> int:
        return len(self._index)

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        for piece in pieces(span):
            rows = self._index[piece.start : piece.stop]
            digest.strings(self._keys[piece.start : piece.stop])
            digest.numbers(rows[:, 0] - rows[0, 0])
            digest.numbers(rows[:, 2::2] if texts else rows[:, 2])  # sizes; where they lie in the tar is no matter
        for sample in spread(span, MOST_TEXTS) if texts else ():
            tar, _, _, *places = (int(number) for number in self._index[sample])
            for offset, size in (places[:2], places[2:]):
                try:
                    digest.raw(self._read(tar, offset, size, "") if size > 0 else b"")
                except BrokenSample as broken:
                    digest.broken(broken)

    def __getitem__(self, index: int) -> Sample:
        config = self._config
        tar, offset, size = (int(number) for number in self._index[index, :3])
        key = f"{Path(self._paths[tar]).stem}/{self._keys[index].as_py()}"
        fields = self._json(index, key) if config.id_column or config.meta_columns else None
        image_id = key if not config.id_column else str((fields or {}).get(config.id_column, key))
        return Sample(
            key=key,
            image=self._read(tar, offset, size, key),
            texts=self._texts(index, key, fields),
            image_id=image_id,
            meta={name: (fields or {}).get(name) for name in config.meta_columns},
        )

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "kind": "tars",
            "num_tars": len(self._paths),
            "num_missing_tars": self._num_missing,
            "num_bad_rows": len(self.bad_rows),
        }


@functools.lru_cache(maxsize=_MAX_OPEN)
def _open(path: str, process: int) -> Any:
    """Return an open file; `process` keeps a forked worker from sharing its parent's.

    A file that falls out of the cache is closed when its last reader lets go of it.
    """
    return open(path, "rb", buffering=0)
