"""Columns in several chunks: widened before they are joined, as more than 2 GiB of strings would not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from openblip.data.sources import columns, parquet
from openblip.data.sources.columns import one_array
from openblip.data.sources.digest import Digest
from openblip.data.sources.identity import id_strings


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[pa.DataType]:
    """The types of what is joined: none may have offsets of 32 bits, which is where 2 GiB end."""
    seen: list[pa.DataType] = []
    original = pa.concat_arrays

    def concat(arrays: list[pa.Array]) -> pa.Array:
        seen.extend(array.type for array in arrays)
        return original(arrays)

    for module in (columns, parquet):
        monkeypatch.setattr(module.pa, "concat_arrays", concat)
    return seen


@pytest.mark.parametrize(
    ("kind", "wide", "values"),
    [
        (pa.string(), pa.large_string(), ["a", None, "b"]),
        (pa.large_string(), pa.large_string(), ["a", None, "b"]),
        (pa.binary(), pa.large_binary(), [b"a", None, b"b"]),
        (pa.list_(pa.string()), pa.large_list(pa.large_string()), [["a", "b"], None, []]),
        (pa.list_(pa.list_(pa.binary())), pa.large_list(pa.large_list(pa.large_binary())), [[[b"a"]], [], [[]]]),
        (pa.dictionary(pa.int32(), pa.string()), pa.large_string(), ["a", None, "b"]),
        (pa.int64(), pa.int64(), [1, None, 2]),
    ],
)
def test_one_array(kind: pa.DataType, wide: pa.DataType, values: list[Any], joined: list[pa.DataType]) -> None:
    chunk = pa.array(values, kind)
    for column in (pa.chunked_array([chunk, chunk[1:]]), pa.chunked_array([], kind), chunk[1:]):
        whole = one_array(column)
        assert whole.type == wide
        assert whole.to_pylist() == column.to_pylist()
    assert set(joined) == {wide}


def test_who_reads_columns_joins_wide_ones(joined: list[pa.DataType]) -> None:
    for kind in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        chunk = pa.array(["a", "b"], kind)
        column = pa.chunked_array([chunk, chunk])
        assert id_strings(column).to_pylist() == ["a", "b", "a", "b"]
        assert parquet._flatten(pa.chunked_array([chunk.cast(pa.string())] * 2), "f")[0].to_pylist() == list("abab")
        assert parquet._strings(column).to_pylist() == list("abab")
    lists = pa.chunked_array([pa.array([["a", "b"], []], pa.list_(pa.string()))] * 2)
    texts, rows, bad = parquet._flatten(lists, "f")
    assert (texts.to_pylist(), rows.tolist(), bad) == (list("abab"), [0, 0, 2, 2], [])
    marks = set()
    for kind in (pa.string(), pa.large_string()):
        for chunks in ([["a", None, "b"]], [["a"], [None, "b"]]):
            digest = Digest()
            digest.strings(pa.chunked_array([pa.array(chunk, kind) for chunk in chunks]))
            marks.add(digest.value())
    assert len(marks) == 1, "how a column is cut and how wide it is are no part of what it holds"
    assert {pa.large_string(), pa.large_list(pa.large_string())} >= set(joined)


def test_a_slice_is_what_counts() -> None:
    whole, part = Digest(), Digest()
    whole.strings(pa.array(["b", "c"]))
    part.strings(pa.array(["a", "b", "c"])[1:])
    assert whole.value() == part.value()
    other = Digest()
    other.strings(pa.chunked_array([pa.array([1, 2]), pa.array([3])]))
    assert other.value() not in ("", whole.value())
    assert np.array(one_array(pa.chunked_array([pa.array([1, 2]), pa.array([3])]))).tolist() == [1, 2, 3]
