"""Statements with their labels in a row of data, as NLVR2 and its relatives write them.

    {"identifier": "dev-850-0-1", "sentence": "both images show two dogs", "label": "True"}    (NLVR2's own files)
    {"images": ["dev/dev-850-0-img0.png", ...], "sentence": "both ...", "label": "True"}  (BLIP's nlvr_dev.json)

NLVR2's own rows name their images by their identifier, SPLIT-SET-PAIR-SENTENCE: SPLIT-SET-PAIR-img0.png and
-img1.png, in the sub-folder `directory` where a row has one, as those of train do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from openblip.data.sample import BrokenSample
from openblip.data.sources.cells import IMAGE_COLUMNS, given_id, is_missing

__all__ = [
    "IDENTIFIER",
    "LABEL_COLUMNS",
    "STATEMENT_COLUMNS",
    "Statement",
    "pair_images",
    "read_statements",
    "statement_texts",
]

STATEMENT_COLUMNS = ("sentence", "statement", "caption", "text")
LABEL_COLUMNS = ("label", "answer")
IDENTIFIER = "identifier"
_PAIR = re.compile(r"(?P<split>[^-]+)-(?P<set>\d+)-(?P<pair>\d+)-(?P<sentence>\d+)")


@dataclass(frozen=True, slots=True)
class Statement:
    """What was said about the images of a sample, and whether it is true of them."""

    text: str
    label: bool | None
    """None where it is not told"""
    group: str
    """equal for all samples that a sentence was written for: consistency asks that all of them are judged right"""
    identifier: str = ""
    """by which NLVR2 knows a statement with its images; "" where there is none"""


def statement_texts(
    row: Mapping[str, Any], names: Mapping[str, str], label: str, *, need_label: bool = True
) -> tuple[str, ...]:
    """The statement of a row with its label as one JSON text that `read_statements` reads.

    Args:
        names: which columns hold the "statement", its "label" and, where there is one, its "identifier".
        need_label: refuse statements without a label.

    Raises:
        BrokenSample: "bad-row", no statement, or a label that is neither true nor false.
    """
    cell = row.get(names["statement"])
    text = "" if is_missing(cell) else str(cell).strip()
    if not text:
        raise BrokenSample("bad-row", label, f'no statement under "{names["statement"]}"')
    given = row.get(names["label"]) if "label" in names else None
    truth = {"true": True, "1": True, "false": False, "0": False}.get(str(given).strip().lower())
    if truth is None and (need_label or not (is_missing(given) or given == "")):
        raise BrokenSample("bad-row", label, f'{given!r:.80} under "{names["label"]}" is neither true nor false')
    identifier = given_id(row.get(names["identifier"])) if "identifier" in names else ""
    # A sentence of NLVR2 is written for one set of pairs: what its identifiers differ in is the pair.
    group = f"{own['split']}-{own['set']}-{own['sentence']}" if (own := _PAIR.fullmatch(identifier)) else identifier
    return (json.dumps([text, truth, group or text, identifier], ensure_ascii=False),)


def read_statements(texts: Iterable[str]) -> tuple[Statement, ...]:
    """Statements from what `statement_texts` made."""
    return tuple(Statement(*json.loads(text)) for text in texts)


def pair_images(
    rows: Iterable[tuple[str, dict[str, Any] | BrokenSample]], roots: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any] | BrokenSample]]:
    """Rows with "images" where they are NLVR2's own, which name none; see `read_records`.

    Args:
        roots: folders that the images lie in, or in a sub-folder named as the split.
    """
    for label, row in rows:
        own_images = isinstance(row, dict) and any(name.strip().lower() in IMAGE_COLUMNS for name in row)
        if isinstance(row, BrokenSample) or IDENTIFIER not in row or own_images:
            yield label, row
        elif named := _PAIR.fullmatch(str(row[IDENTIFIER])):
            split, directory = named["split"], given_id(row.get("directory"))
            below = any(os.path.isdir(os.path.join(root, split)) for root in roots)
            folder = "".join(f"{part}/" for part in (split if below else "", directory) if part)
            stem = f"{folder}{split}-{named['set']}-{named['pair']}"
            yield label, {**row, "images": [f"{stem}-img0.png", f"{stem}-img1.png"]}
        else:
            detail = (
                f'{row[IDENTIFIER]!r:.80} under "{IDENTIFIER}" is not SPLIT-SET-PAIR-SENTENCE, as dev-850-0-1 is'
            )
            yield label, BrokenSample("bad-row", label, detail)
