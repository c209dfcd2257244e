"""An index as one parquet file: what is known of each image with its vectors, for other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openblip.core.text import json_bytes
from openblip.data.sinks.tables import Kind, write_rows
from openblip.index.catalog import Catalog, Record
from openblip.index.filters import Filters
from openblip.index.vectors import VectorStore

__all__ = ["export"]

_BLOCK_BYTES = 2**23
"""of vectors in float16, that are read and written together"""
_MOST_ROWS = 4096


def export(
    catalog: Catalog,
    store: VectorStore,
    out: Path,
    *,
    kind: Literal["float16", "float32"] = "float16",
    filters: Filters | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write the images of an index that pass, in the order they came; returns how many.

    Memory does not depend on their number.

    Args:
        kind: of the vectors' values; an index holds float16.

    Raises:
        UserError: vectors are missing, or the disk is full.
    """
    queries, width = store.shape
    vector: Kind = (kind, width)
    schema: dict[str, Kind] = {
        "path": "string",
        "file": "string",
        "start": "int",
        "length": "int",
        "key": "string",
        "date": "string",
        "captions": ["string"],
        "metadata": "string",
        **({"vector": vector} if queries == 1 else {"vectors": (vector, queries)}),
    }
    rows_of_block = max(1, min(_MOST_ROWS, _BLOCK_BYTES // (2 * queries * width)))
    done = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal done
        for records in catalog.blocks(rows_of_block, filters):
            values = store.read([record.vector for record in records]).numpy().astype(np.dtype(kind))
            for record, own in zip(records, values, strict=True):
                yield {**_row(record), **({"vector": own[0]} if queries == 1 else {"vectors": list(own)})}
            done += len(records)
            progress(done)

    about = {name: str(catalog.settings[name]) for name in ("model", "fingerprint", "created")}
    write_rows(out, rows(), schema, rows_in_group=rows_of_block, about=about)
    return done


def _row(record: Record) -> dict[str, Any]:
    return {
        "path": record.path,
        "file": record.file,
        "start": record.start,
        "length": record.length,
        "key": record.hash,
        "date": record.date,
        "captions": list(record.captions),
        "metadata": json_bytes(record.metadata).decode(),
    }
