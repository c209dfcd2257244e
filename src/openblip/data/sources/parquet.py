"""Parquet files as a source, with images as paths or inside (bytes, or {bytes, path} as Hugging Face writes).

Captions and ids are read at once; images inside are read a row group at a time and a bounded number of
groups is kept, so samples are shuffled among the groups that fit (`Source.window`).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openblip.core.errors import UserError, first_line
from openblip.core.kinds import read_head, refuse_other_kinds
from openblip.data.sample import BrokenSample, ImageLike
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import string_array, string_of
from openblip.data.sources.cells import NO_TEXT, as_texts, row_images
from openblip.data.sources.columns import one_array
from openblip.data.sources.digest import Digest
from openblip.data.sources.identity import (
    id_strings,
    image_ids,
    image_name,
    labels_of,
    settle_ids,
)
from openblip.data.sources.paths import image_roots, locate_image
from openblip.data.sources.table import (
    Columns,
    ImagePaths,
    TableSource,
    choose_columns,
    image_columns,
    no_such_split,
    row_paths,
    row_texts,
)

__all__ = ["open_parquet"]

_CACHE_BYTES = 256 << 20
"""Images of row groups kept by each worker process."""


def open_parquet(paths: Sequence[Path], config: SourceConfig) -> TableSource:
    """Open one parquet file, or several with the same columns."""
    if config.image_name:
        raise UserError(f'{config.path} is parquet, which does not read the setting "image_name"')
    try:
        return _open(paths, config)
    except UnicodeDecodeError as error:  # names of columns, and cells of nested types
        raise UserError(f"{paths[0]} holds text that is not UTF-8: {error}") from error
    except pa.ArrowException as error:
        raise UserError(f"{paths[0]} cannot be read as parquet: {first_line(error)}") from error


def _open(paths: Sequence[Path], config: SourceConfig) -> TableSource:
    try:
        schema = pq.read_schema(paths[0])
    except (pa.ArrowException, OSError) as error:
        if not (head := read_head(paths[0])).startswith(b"PAR1"):
            refuse_other_kinds(paths[0], head, "a parquet file")
        raise UserError(f"{paths[0]} cannot be read as parquet: {first_line(error)}") from error
    names = choose_columns(schema.names, config, str(paths[0]))
    shown = image_columns(names)
    inside = any(_is_inside(schema.field(name).type) and not _only_paths(paths, name) for name in shown)
    wanted = {name for name in names.values() if not (name in shown and inside)}
    wanted |= {*config.meta_columns, *(("split",) if config.split else ())}
    tables = []
    for path in paths:
        try:
            tables.append(pq.read_table(path, columns=sorted(wanted)))
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} cannot be read, or lacks columns that {paths[0]} has: {first_line(error)}"
            ) from error
    try:
        table = pa.concat_tables(map(_without_views, tables), promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{paths[0]} and the files beside it have different columns: {first_line(error)}"
        ) from error
    rows = np.arange(sum(pq.read_metadata(path).num_rows for path in paths))
    if config.split:
        rows = np.flatnonzero(
            pc.fill_null(pc.equal(_strings(table["split"]), config.split), False).to_numpy(zero_copy_only=False)
        )
        if not len(rows):
            seen = [string_of(split) for split in pc.unique(_strings(table["split"])).drop_null()]
            raise no_such_split(config.split, seen, str(paths[0]))
        table = table.take(pa.array(rows))
    bad_rows: list[BrokenSample] = []
    images: GroupedImages | ImagePaths
    roots = image_roots(config.image_root, str(paths[0].parent))
    if inside:
        images = GroupedImages(
            paths, shown, rows, count=config.num_images, roots=roots, absolute=config.absolute_paths
        )
    else:
        table, places, bad_rows = _with_paths(table, shown, paths[0].name, count=config.num_images)
        images = ImagePaths(places, roots, absolute=config.absolute_paths)
    num_rows = len(rows) - len(bad_rows)
    if "question" in names or "statement" in names:
        texts, text_row, without_answers = _answered(table, names, paths[0].name, need_answers=config.need_answers)
        bad_rows += without_answers
    else:
        column = table[names["caption"]] if "caption" in names else None
        texts, text_row, wrong_texts = _flatten(column, paths[0].name)
        bad_rows += wrong_texts
    ids = id_strings(table[names["id"]]) if "id" in names else None
    if ids is not None:
        ids = image_ids(ids, images.names) if isinstance(images, ImagePaths) else settle_ids(ids, images.names_of)
    columns = Columns(
        images=images,
        texts=texts,
        text_row=text_row,
        num_rows=num_rows,
        ids=images.same_names() if ids is None and isinstance(images, ImagePaths) else ids,
        meta={name: _as_json(table[name]) for name in config.meta_columns},
        names=names,
        bad_rows=bad_rows,
    )
    return TableSource(columns, config, kind="parquet")


class GroupedImages:
    """Images inside parquet files; [row] -> (key, bytes or paths). Keeps the row groups that were read last.

    Args:
        columns: that hold the `count` images of a row.
        rows: int64 [R], the row of each kept row in the files read one after the other.
        roots: where a cell's path starts from, when it holds no bytes.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        columns: Sequence[str],
        rows: np.ndarray,
        *,
        count: int,
        roots: tuple[str, ...],
        absolute: bool,
    ) -> None:
        self._paths, self._columns, self._rows, self._count = paths, list(columns), rows, count
        self._roots, self._absolute = roots, absolute
        self._labels = labels_of([str(path) for path in paths], stem=False)
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
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}  # a worker process reads its own

    def blocks_of(self, rows: np.ndarray) -> tuple[list[range], int]:
        """Return the ranges of samples (whose images lie in `rows`) in one row group, and the window."""
        groups = self._group_of(self._rows[rows])
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(groups)) + 1, [len(groups)]])
        blocks = [range(int(a), int(b)) for a, b in itertools.pairwise(cuts) if b > a]
        return blocks, max(1, self.num_kept - 1)

    def _group_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def __getitem__(self, row: int) -> tuple[str, tuple[ImageLike, ...]]:
        key, images = self._images(row)
        if not images:
            raise BrokenSample("missing", key, "the row holds no image")
        return key, tuple(self._located(image, key) if isinstance(image, str) else image for image in images)

    def _located(self, image: str, key: str) -> Path:
        place = locate_image(image, self._roots, key=key, absolute=self._absolute)
        if not place.exists():
            raise BrokenSample("missing", key, f"the row holds no image, and its path {place} leads nowhere")
        return place

    def _images(self, row: int) -> tuple[str, tuple[bytes | str, ...]]:
        place = int(self._rows[row])
        group = int(self._group_of(np.asarray(place)))
        file = self._groups[group][0]
        key = f"{self._labels[file]}:{place - int(self._starts[self._first_group(file)])}"
        try:
            table, number = self._read(group, key), place - int(self._starts[group])
            cells = [table[column][number].as_py() for column in self._columns]
        except UnicodeDecodeError as error:
            raise BrokenSample("bad-row", key, f"its path is not UTF-8: {error}") from error
        return key, row_images(cells, self._columns, key, count=self._count)

    def names_of(self, rows: np.ndarray) -> list[str]:
        """Return what tells the images of `rows` apart, the row's key where there is none; reads the images."""
        found = []
        for row in rows:
            try:
                key, images = self._images(int(row))
            except BrokenSample as broken:
                key, images = broken.key, ()
            found.append(image_name(*images) or key)
        return found

    def digest(self, digest: Digest, rows: np.ndarray) -> None:
        """Add where the images of `rows` lie, and how large the row groups are that hold them."""
        places = self._rows[rows]
        groups = np.unique(self._group_of(places))
        digest.numbers(places - (self._starts[groups[0]] if len(groups) else 0))
        digest.numbers(self._group_sizes[groups])
        digest.numbers(np.diff(self._starts)[groups])

    @functools.cached_property
    def _group_sizes(self) -> np.ndarray:
        """Bytes of the images of each row group, int64 [groups]."""
        sizes: list[int] = []
        for path in self._paths:
            metadata = pq.read_metadata(path)
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                chunks = (group.column(number) for number in range(group.num_columns))
                own = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in self._columns)
                sizes.append(sum(chunk.total_uncompressed_size for chunk in own))
        return np.array(sizes, np.int64)

    def _first_group(self, file: int) -> int:
        return next(number for number, (owner, _) in enumerate(self._groups) if owner == file)

    def _read(self, group: int, key: str) -> pa.Table:
        if group in self._cache:
            self._cache.move_to_end(group)
            return self._cache[group]
        file, number = self._groups[group]
        try:
            with pq.ParquetFile(self._paths[file]) as parquet:
                table = parquet.read_row_group(number, columns=self._columns)
        except (pa.ArrowException, OSError) as error:
            raise BrokenSample("unreadable", key, first_line(error)) from error
        self._cache[group] = table
        while len(self._cache) > self.num_kept:
            self._cache.popitem(last=False)
        return table


def _is_inside(kind: pa.DataType) -> bool:
    """Whether a column of images may hold their bytes: binary, {bytes, path}, or lists of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_inside(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _is_inside(kind.value_type)
    return (
        pa.types.is_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_struct(kind)
    )


def _only_paths(paths: Sequence[Path], column: str) -> bool:
    """Whether each {bytes, path} is without bytes, by the counts that the files hold."""
    for path in paths:
        metadata = pq.read_metadata(path)
        leaves = [number for number in range(metadata.num_columns)
                  if metadata.schema.column(number).path == f"{column}.bytes"]  # fmt: skip
        if not leaves:
            return False
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(leaves[0])
            if chunk.statistics is None or chunk.statistics.null_count != chunk.num_values:
                return False
    return True


def _without_views(table: pa.Table) -> pa.Table:
    """The table with its columns of string views, for which Arrow lacks functions, as large strings."""
    for number, column in enumerate(table.schema):
        if column.type == pa.string_view():
            table = table.set_column(number, column.name, pc.cast(table[number], pa.large_string()))
    return table


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _strings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as large_string, null where it holds nothing."""
    whole = one_array(column)
    if _is_text(whole.type):
        return whole
    cells = [_texts_or_none(cell) for cell in whole.to_pylist()]
    texts = string_array([cell[0] if cell else "" for cell in cells])
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)


def _texts_or_none(cell: Any) -> tuple[str, ...]:
    try:
        return as_texts(cell)
    except BrokenSample:  # bytes that are not UTF-8
        return ()


def _with_paths(
    table: pa.Table, columns: Sequence[str], file: str, *, count: int
) -> tuple[pa.Table, list[pa.Array], list[BrokenSample]]:
    """The rows that name `count` images, the path of each, and what is wrong with the others."""
    bad: list[BrokenSample] = []
    column = columns[0]
    if count == 1 and (_is_text(table[column].type) or pa.types.is_dictionary(table[column].type)):
        places = _strings(table[column])
        given = _holds_something(places)
        empty = np.flatnonzero(~given.to_numpy(zero_copy_only=False))
        bad = [BrokenSample("bad-row", f"{file}:{row}", f'no path under "{column}"') for row in empty]
        return (table.filter(given), [places.filter(given)], bad) if bad else (table, [places], bad)
    found: list[tuple[str, ...]] = []
    rows: list[int] = []
    for number, cells in enumerate(zip(*(table[name] for name in columns), strict=True)):
        try:
            row = {name: cell.as_py() for name, cell in zip(columns, cells, strict=True)}
            found.append(row_paths(row, columns, f"{file}:{number}", count=count))
            rows.append(number)
        except BrokenSample as broken:
            bad.append(broken)
        except UnicodeDecodeError as error:
            bad.append(BrokenSample("bad-row", f"{file}:{number}", f"its path is not UTF-8: {error}"))
    each = [string_array([row[image] for row in found], paths=True) for image in range(count)]
    return table.take(pa.array(rows, pa.int64())), each, bad


def _flatten(column: pa.ChunkedArray | None, file: str) -> tuple[pa.Array, np.ndarray, list[BrokenSample]]:
    """Return the captions of a column one by one with their rows, and what is wrong with other rows."""
    if column is None:
        return string_array([]), np.zeros(0, np.int64), []
    if _is_text(column.type):
        texts = _strings(column)
        return *_without_blanks(texts, np.arange(len(texts))), []
    if (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)) and _is_text(column.type.value_type):
        whole = one_array(column)
        rows = pc.list_parent_indices(whole).to_numpy(zero_copy_only=False).astype(np.int64)
        return *_without_blanks(_strings(pc.list_flatten(whole)), rows), []
    pairs: list[tuple[str, int]] = []
    bad: list[BrokenSample] = []
    for number, cell in enumerate(column):
        try:
            pairs += [(text, number) for text in as_texts(cell.as_py())]
        except (BrokenSample, UnicodeDecodeError) as error:
            detail = error.detail if isinstance(error, BrokenSample) else str(error)
            bad.append(BrokenSample("bad-text", f"{file}:{number}", detail))
    return string_array([text for text, _ in pairs]), np.array([row for _, row in pairs], np.int64), bad


def _answered(
    table: pa.Table, names: Mapping[str, str], file: str, *, need_answers: bool
) -> tuple[pa.Array, np.ndarray, list[BrokenSample]]:
    """Return the questions or statements one by one with their rows, and what is wrong with other rows."""
    texts: list[str] = []
    rows: list[int] = []
    bad: list[BrokenSample] = []
    columns = [column for role, column in names.items() if not role.startswith("image") and role != "id"]
    for number, row in enumerate(table.select(columns).to_pylist()):
        try:
            found = row_texts(row, names, f"{file}:{number}", need_answers=need_answers)
        except BrokenSample as broken:
            bad.append(broken)
            continue
        texts += found
        rows += [number] * len(found)
    return string_array(texts), np.array(rows, np.int64), bad


def _holds_something(texts: pa.Array) -> pa.Array:
    try:
        trimmed = pc.utf8_trim_whitespace(texts)
    except pa.ArrowInvalid:  # bytes that are not UTF-8
        trimmed = pc.ascii_trim_whitespace(texts)
    return pc.fill_null(pc.greater(pc.binary_length(trimmed), 0), False)


def _without_blanks(texts: pa.Array, rows: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    given = pc.and_(_holds_something(texts), pc.invert(pc.is_in(texts, pa.array(NO_TEXT, texts.type))))
    keep = given.to_numpy(zero_copy_only=False)
    return (texts, rows) if keep.all() else (texts.filter(given), rows[keep])


def _as_json(column: pa.ChunkedArray) -> pa.Array:
    return string_array([json.dumps(cell.as_py(), default=str) for cell in column])
