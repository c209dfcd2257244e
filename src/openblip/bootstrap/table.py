"""The result table: for every sample what was found, every text, every score, every decision and its reason.

A row for each sample of the source in the source's order, the broken ones too: nothing is thrown away silently.
Rows are kept a shard in a parquet file; any tool reads them, `openblip capfilt decide` decides anew on them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openblip.core.text import json_bytes
from openblip.data.sinks.tables import read_rows, write_rows

__all__ = ["Origin", "Row", "Text", "plain_row", "read_table", "row_from", "write_table"]

Origin = Literal["web", "synthetic"]


@dataclass(slots=True)
class Text:
    """A text of an image, with its scores and what was decided."""

    text: str
    """as it came, or as it was written"""
    origin: Origin
    itm: float | None = None
    """probability that image and text belong together: [ENC], two-way softmax"""
    itc: float | None = None
    """cosine of their embeddings in the filter"""
    ranker: float | None = None
    """cosine in an outside model, where one was requested"""
    log_prob: float | None = None
    """of a written text under the captioner, natural logarithm"""
    num_tokens: int | None = None
    """of a written text, the end included"""
    complete: bool | None = None
    """whether a written text came to its end"""
    kept: bool = False
    reason: str = ""
    """see `policy.REASONS`"""


@dataclass(slots=True)
class Row:
    """A sample."""

    key: str
    index: int
    """of the sample in its part of the source; -1 for what could not be read when the part was opened"""
    part: str = ""
    """of the source: the tar or parquet file, or the whole"""
    image_id: str = ""
    status: str = "ok"
    """or why the sample could not be used: a cause of `BrokenSample`, or "duplicate-key" """
    detail: str = ""
    """one sentence on a sample that could not be used"""
    image_hash: str = ""
    """hash of the pixels that the models saw; equal for equal images"""
    texts: list[Text] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    """what else the source knows, `SourceConfig.meta_columns`; times and bytes are written as text"""
    captioner: str = ""
    """fingerprint of the model that wrote"""
    filter: str = ""
    """fingerprint of the model that scored"""
    ranker: str = ""
    """fingerprint of the outside model, where one was requested"""
    seed: int = 0

    @property
    def kept(self) -> list[Text]:
        """Texts that stay."""
        return [text for text in self.texts if text.kept]


_TEXT = {
    "text": "string",
    "origin": "string",
    "itm": "float",
    "itc": "float",
    "ranker": "float",
    "log_prob": "float",
    "num_tokens": "int",
    "complete": "bool",
    "kept": "bool",
    "reason": "string",
}
_ROW = {
    "key": "string",
    "index": "int",
    "part": "string",
    "image_id": "string",
    "status": "string",
    "detail": "string",
    "image_hash": "string",
    "texts": [_TEXT],
    "meta": "string",
    "captioner": "string",
    "filter": "string",
    "ranker": "string",
    "seed": "int",
}


def write_table(path: Path | str, rows: Sequence[Row]) -> None:
    """Write rows to a parquet file, whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    write_rows(path, map(plain_row, rows), _ROW)


def plain_row(row: Row) -> dict[str, Any]:
    """A row as plain values, for a table or JSON; `row_from` reads it."""
    # By name, since `dataclasses.asdict` copies what it finds and takes most of the time of a table.
    plain: dict[str, Any] = {name: getattr(row, name) for name in _ROW}
    texts = [{name: getattr(text, name) for name in _TEXT} for text in row.texts]
    return {**plain, "texts": texts, "meta": json_bytes(row.meta, default=str).decode()}


def read_table(path: Path | str) -> list[Row]:
    """Read the rows of a file that `write_table` wrote.

    Raises:
        UserError: there is no such file, or it holds no result table.
    """
    return [row_from(plain) for plain in read_rows(path, columns=list(_ROW), younger=("ranker",))]


def row_from(plain: dict[str, Any]) -> Row:
    """The row that `plain_row` made plain."""
    texts = [Text(**text) for text in plain["texts"]]
    return Row(**{**plain, "meta": json.loads(plain["meta"]), "texts": texts})
