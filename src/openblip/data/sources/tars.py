"""WebDataset tars, as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json, in any order.

The headers of each tar are read once when it is opened, after which any sample is one read at a known place:
shuffling, resuming and sharing between workers need no more than a number. Each tar is a block, so that a disk or
network drive reads a few tars at a time.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openblip.core.errors import UserError, nearest
from openblip.core.kinds import looks_like, read_head
from openblip.core.text import decode, lines_of
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import NoSamples, Source, string_array
from openblip.data.sources.cells import TEXT_COLUMNS, as_texts, given_id, is_too_deep
from openblip.data.sources.digest import MOST_TEXTS, Digest, pieces, spread
from openblip.data.sources.identity import labels_of
from openblip.data.sources.tar_keys import KeyReader
from openblip.data.sources.tar_members import Member, read_members

__all__ = ["Member", "TarSource", "read_members"]

_MAX_OPEN = 256


class TarSource(Source):
    """Samples of one or more tars on a local (or mounted) disk.

    Index arrays hold, for N samples: the tar, and where image, text and JSON lie (offset and size; size -1
    where there is none).
    """

    reads = frozenset(("image_column", "text_column", "id_column", "meta_columns"))

    def __init__(self, paths: Sequence[Path], config: SourceConfig, *, num_missing: int = 0) -> None:
        super().__init__()
        self.name = config.name or config.path
        self._paths = [str(path) for path in paths]
        self._versions = [_version_of(path) for path in self._paths]
        self._labels = labels_of(self._paths, stem=True)
        self._config = config
        self._num_missing = num_missing
        reader = KeyReader(config.image_column, config.text_column)
        keys: list[str] = []
        rows: list[tuple[int, ...]] = []
        sizes: list[int] = []
        parts: list[tuple[pa.Array, np.ndarray]] = []
        for number, path in enumerate(paths):
            samples, bad = reader.samples(self._members(path), self._labels[number])
            self.bad_rows += bad
            for key, places in samples:
                keys.append(key)
                rows.append((number, *places))
            sizes.append(len(keys))
            parts.append((string_array(keys), np.array(rows, np.int64).reshape(-1, 7)))
            keys, rows = [], []
        self._keys = pa.concat_arrays([part[0] for part in parts])
        self._index = np.concatenate([part[1] for part in parts])
        reader.check(config.path)
        if not len(self._index):
            found = looks_like(read_head(paths[0])) or ""
            why = f" ({self.bad_rows[0]})" if self.bad_rows else ""
            seen = f": {paths[0]} {found}" if found not in ("", "is a tar archive") else ""
            raise NoSamples(f"the tars of {config.path} hold no images{why}{seen}", self.bad_rows)
        self._text_endings = reader.text_endings
        self._check_fields()
        ends = np.cumsum(sizes)
        self.blocks = [range(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True) if size]

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
            file = _open(self._paths[tar], self._versions[tar], os.getpid())
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
        except (ValueError, RecursionError) as error:
            raise BrokenSample("bad-text", key, f"its JSON cannot be read: {error}") from error
        if not isinstance(content, dict):
            return {}
        if is_too_deep(content):
            raise BrokenSample("bad-text", key, "its JSON is nested too deep")
        return content

    def _texts(self, sample: int, key: str, fields: dict[str, Any] | None) -> tuple[str, ...]:
        tar, _, _, offset, size, _, _ = (int(number) for number in self._index[sample])
        if size >= 0:
            try:
                lines = lines_of(decode(self._read(tar, offset, size, key), key))
                if texts := tuple(line for part in lines if (line := part.strip())):
                    return texts
            except UserError as error:
                raise BrokenSample("bad-text", key, "its text is not UTF-8") from error
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

    def member(self, index: int) -> tuple[str, str, Member]:
        """The tar of a sample, its key in there, and where its image lies, without a look into the tar."""
        tar, offset, size = (int(number) for number in self._index[index, :3])
        key = self._keys[index].as_py()
        return self._paths[tar], key, Member(key, offset, size)

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
        key = f"{self._labels[tar]}/{self._keys[index].as_py()}"
        fields = self._json(index, key) if config.id_column or config.meta_columns else None
        image_id = given_id((fields or {}).get(config.id_column)) or key
        return Sample(
            key=key,
            images=(self._read(tar, offset, size, key),),
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


def _version_of(path: str) -> tuple[int, ...]:
    """What differs where another file has taken the place of one; () where nothing can be said."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=_MAX_OPEN)
def _open(path: str, version: tuple[int, ...], process: int) -> Any:
    """Return an open file; `process` keeps a forked worker from sharing its parent's.

    `version` is that of the file which was indexed: a tar that has been replaced since it was last read in this
    process is opened anew, for the places of its members are others.

    A file that falls out of the cache is closed when its last reader lets go of it.
    """
    return open(path, "rb", buffering=0)
