"""Tables as parquet files: rows of plain values in, rows of plain values out, typed by a schema in plain words.

    SCHEMA = {"key": "string", "texts": [{"text": "string", "score": "float"}]}
    write_rows("000000.parquet", rows, SCHEMA)

The same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openblip.core.errors import UserError
from openblip.core.files import atomic_path
from openblip.core.text import escaped

__all__ = ["Kind", "read_rows", "row_writer", "write_rows"]

Kind = Any
"""A kind's name ("string", "int", "float", "float16", "bool", "bytes"), [kind] for a list of it, (kind, N) for a
list of N of them, {name: kind} for a record."""

_PLAIN: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float32(),
    "float32": pa.float32(),
    "float16": pa.float16(),
    "bool": pa.bool_(),
    "bytes": pa.binary(),
}


def _type(kind: Kind) -> pa.DataType:
    if isinstance(kind, str):
        return _PLAIN[kind]
    if isinstance(kind, Mapping):
        return pa.struct([(name, _type(inner)) for name, inner in kind.items()])
    if isinstance(kind, tuple):
        inner, count = kind
        return pa.list_(_type(inner), count)
    (inner,) = kind
    return pa.list_(_type(inner))


def write_rows(
    path: Path | str,
    rows: Iterable[Mapping[str, Any]],
    schema: Mapping[str, Kind],
    *,
    rows_in_group: int = 1 << 16,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a parquet file, whole or not at all.

    Args:
        rows: taken a group at a time.
        rows_in_group: rows that are read together; few where they hold images.
        about: metadata of the file.

    Raises:
        UserError: the disk is full.
    """
    with row_writer(path, schema, rows_in_group=rows_in_group, about=about) as write:
        for row in rows:
            write(row)


@contextmanager
def row_writer(
    path: Path | str,
    schema: Mapping[str, Kind],
    *,
    rows_in_group: int = 1 << 16,
    about: Mapping[str, str] | None = None,
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield what takes the rows of a parquet file one by one; the file appears at the end, whole or not at all.

    Args:
        rows_in_group, about: as `write_rows`.

    Raises:
        UserError: the disk is full.
    """
    types = pa.schema([(name, _type(kind)) for name, kind in schema.items()], metadata=about)
    group: list[Mapping[str, Any]] = []
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, types, compression="zstd") as writer:

        def flush() -> None:
            try:
                table = pa.Table.from_pylist(group, schema=types)
            except UnicodeEncodeError:
                table = pa.Table.from_pylist([_utf8(row) for row in group], schema=types)
            writer.write_table(table)
            group.clear()

        def write(row: Mapping[str, Any]) -> None:
            group.append(row)
            if len(group) == rows_in_group:
                flush()

        yield write
        if group:
            flush()


def _utf8(value: Any) -> Any:
    """`value` with the names of files that are not UTF-8 escaped, "caf\\udce9.jpg": parquet holds UTF-8 alone."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Mapping):
        return {name: _utf8(inner) for name, inner in value.items()}
    return [_utf8(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_rows(
    path: Path | str, columns: Sequence[str] | None = None, *, younger: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Read what `write_rows` wrote, or some of its columns.

    Args:
        younger: columns that files of earlier versions lack; they are left out of the rows then.

    Raises:
        UserError: the file is not there, cannot be read or lacks a column.
    """
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            wanted = None if columns is None else [name for name in columns if name in there or name not in younger]
            missing = [name for name in wanted or () if name not in there]
            if missing:
                raise UserError(f'{path} has no column "{missing[0]}"; it has {", ".join(there)}')
            return file.read(columns=wanted).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from error
