"""Columns of Arrow in one piece: chunks are widened first, since 32-bit offsets end at 2 GiB of strings in all."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["one_array"]


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array: strings and bytes, and lists of them, with 64-bit offsets; dictionaries decoded."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    wide = _wide(column.type)
    widened = [chunk if chunk.type == wide else _widened(chunk, wide) for chunk in chunks]
    if len(widened) == 1:
        return widened[0]
    return pa.concat_arrays(widened) if widened else pa.array([], wide)


def _wide(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _wide(kind.value_type)
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_wide(kind.value_type))
    return kind


def _widened(chunk: pa.Array, wide: pa.DataType) -> pa.Array:
    return pc.cast(chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk, wide)
