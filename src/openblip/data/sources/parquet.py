"""Parquet files as a source, with pictures as paths or inside (bytes, or {bytes, path} as Hugging Face writes).

Captions and ids are read at once; pictures inside are read a row group at a time and a bounded number of
groups is kept, so samples are shuffled among the groups that fit (`Source.window`).
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample, ImageLike
from openblip.data.sources.answers import question_texts
from openblip.data.sources.base import SourceConfig, as_texts, string_array
from openblip.data.sources.digest import Digest
from openblip.data.sources.table import Columns, ImagePaths, TableSource, choose_columns, no_such_split

__all__ = ["open_parquet"]

_CACHE_BYTES = 256 << 20
"""Pictures of row groups kept by each worker process."""


def open_parquet(paths: Sequence[Path], config: SourceConfig) -> TableSource:
    """Open one parquet file, or several with the same columns."""
    try:
        schema = pq.read_schema(paths[0])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{paths[0]} cannot be read as parquet: {error}") from error
    names = choose_columns(schema.names, config, str(paths[0]))
    image_type = schema.field(names["image"]).type
    inside = _is_bytes(image_type) or pa.types.is_struct(image_type)
    wanted = {name for role, name in names.items() if not (role == "image" and inside)}
    wanted |= {*config.meta_columns, *(("split",) if config.split else ())}
    tables = []
    for path in paths:
        try:
            tables.append(pq.read_table(path, columns=sorted(wanted)))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read, or lacks columns that {paths[0]} has: {error}") from error
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise UserError(f"{paths[0]} and the files beside it have different columns: {error}") from error
    rows = np.arange(sum(pq.read_metadata(path).num_rows for path in paths))
    if config.split:
        rows = np.flatnonzero(pc.equal(table["split"], config.split).to_numpy(zero_copy_only=False))
        if not len(rows):
            seen = [str(split) for split in pc.unique(table["split"]).to_pylist()]
            raise no_such_split(config.split, seen, str(paths[0]))
        table = table.take(pa.array(rows))
    bad_rows: list[BrokenSample] = []
    images: GroupedImages | ImagePaths
    if inside:
        images = GroupedImages(paths, names["image"], rows)
    else:
        table, bad_rows = _without_empty(table, names["image"], paths[0].name)
        root = config.image_root or str(paths[0].parent)
        images = ImagePaths(_strings(table[names["image"]]), root, absolute=config.absolute_paths)
    num_rows = len(rows) - len(bad_rows)
    if "question" in names:
        texts, text_row, without_answers = _questions(table, names, paths[0].name)
        bad_rows += without_answers
    else:
        texts, text_row = _flatten(table[names["caption"]]) if "caption" in names else _flatten(None)
    ids = _strings(table[names["id"]]) if "id" in names else None
    columns = Columns(
        images=images,
        texts=texts,
        text_row=text_row,
        num_rows=num_rows,
        ids=images.names if ids is None and isinstance(images, ImagePaths) else ids,
        meta={name: _as_json(table[name]) for name in config.meta_columns},
        names=names,
        bad_rows=bad_rows,
    )
    return TableSource(columns, config, kind="parquet")


class GroupedImages:
    """Pictures inside parquet files; [row] -> (key, bytes). Keeps the row groups that were read last.

    Args:
        rows: int64 [R], the row of each kept row in the files read one after the other.
    """

    def __init__(self, paths: Sequence[Path], column: str, rows: np.ndarray) -> None:
        self._paths, self._column, self._rows = paths, column, rows
        self._groups: list[tuple[int, int]] = []
        sizes: list[int] = []
        num_bytes = 0
        for number, path in enumerate(paths):
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                sizes.append(metadata.row_group(group).num_rows)
                num_bytes = max(num_bytes, metadata.row_group(group).total_byte_size)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self.num_kept = max(2, _CACHE_BYTES // max(num_bytes, 1))
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}  # a worker process reads its own

    def blocks_of(self, rows: np.ndarray) -> tuple[list[range], int]:
        """Return the ranges of samples (whose pictures lie in `rows`) in one row group, and the window."""
        groups = self._group_of(self._rows[rows])
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1, [len(groups)]])
        blocks = [range(int(a), int(b)) for a, b in itertools.pairwise(cuts) if b > a]
        return blocks, max(1, self.num_kept - 1)

    def _group_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def __getitem__(self, row: int) -> tuple[str, ImageLike]:
        place = int(self._rows[row])
        group = int(self._group_of(np.asarray(place)))
        file = self._groups[group][0]
        key = f"{os.path.basename(self._paths[file])}:{place - int(self._starts[self._first_group(file)])}"
        cell = self._read(group, key)[place - int(self._starts[group])].as_py()
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if cell is None:
            raise BrokenSample("missing", key, "the row holds no picture")
        return key, cell

    def digest(self, digest: Digest, rows: np.ndarray) -> None:
        """Add where the pictures of `rows` lie, and how large the row groups are that hold them."""
        places = self._rows[rows]
        groups = np.unique(self._group_of(places))
        digest.numbers(places - (self._starts[groups[0]] if len(groups) else 0))
        digest.numbers(self._group_sizes[groups])
        digest.numbers(np.diff(self._starts)[groups])

    @functools.cached_property
    def _group_sizes(self) -> np.ndarray:
        """Bytes of the pictures of each row group, int64 [groups]."""
        sizes: list[int] = []
        for path in self._paths:
            metadata = pq.read_metadata(path)
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                chunks = (group.column(number) for number in range(group.num_columns))
                own = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == self._column)
                sizes.append(sum(chunk.total_uncompressed_size for chunk in own))
        return np.array(sizes, np.int64)

    def _first_group(self, file: int) -> int:
        return next(number for number, (owner, _) in enumerate(self._groups) if owner == file)

    def _read(self, group: int, key: str) -> pa.ChunkedArray:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        file, number = self._groups[group]
        try:
            with pq.ParquetFile(self._paths[file]) as parquet:
                column = parquet.read_row_group(number, columns=[self._column]).column(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise BrokenSample("unreadable", key, str(error)) from error
        self._cache[group] = column
        while len(self._cache) > self.num_kept:
            self._cache.popitem(last=False)
        return column


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _strings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return _combined(pc.cast(column, pa.large_string()))


def _combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _without_empty(table: pa.Table, column: str, file: str) -> tuple[pa.Table, list[BrokenSample]]:
    """Drop the rows that name no picture."""
    given = pc.fill_null(pc.greater(pc.utf8_length(pc.cast(table[column], pa.large_string())), 0), False)
    empty = np.flatnonzero(~given.to_numpy(zero_copy_only=False))
    bad = [BrokenSample("bad-row", f"{file}:{row}", f'no path under "{column}"') for row in empty]
    return (table.filter(given) if bad else table), bad


def _flatten(column: pa.ChunkedArray | None) -> tuple[pa.Array, np.ndarray]:
    """Return the captions of a column of strings, or of lists of them, one by one with their rows."""
    if column is None:
        return string_array([]), np.zeros(0, np.int64)
    kind = column.type
    column = _combined(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not pa.types.is_struct(kind.value_type):
            rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False).astype(np.int64)
            return _without_blanks(_strings(pc.list_flatten(column)), rows)
        pairs = [(t, row) for row, cell in enumerate(column) for t in as_texts(cell.as_py())]
        return string_array([t for t, _ in pairs]), np.array([r for _, r in pairs], np.int64)
    return _without_blanks(_strings(column), np.arange(len(column)))


def _questions(
    table: pa.Table, names: Mapping[str, str], file: str
) -> tuple[pa.Array, np.ndarray, list[BrokenSample]]:
    """Return the questions one by one with their rows, and what is wrong with other rows."""
    texts: list[str] = []
    rows: list[int] = []
    bad: list[BrokenSample] = []
    columns = [names[role] for role in ("question", "answer", "weight") if role in names]
    for number, row in enumerate(table.select(columns).to_pylist()):
        try:
            found = question_texts(row, names, f"{file}:{number}")
        except BrokenSample as broken:
            bad.append(broken)
            continue
        texts += found
        rows += [number] * len(found)
    return string_array(texts), np.array(rows, np.int64), bad


def _without_blanks(texts: pa.Array, rows: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    given = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), False)
    keep = given.to_numpy(zero_copy_only=False)
    return (texts, rows) if keep.all() else (texts.filter(given), rows[keep])


def _as_json(column: pa.ChunkedArray) -> pa.Array:
    return string_array([json.dumps(cell.as_py(), default=str) for cell in column])
