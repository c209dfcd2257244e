"""Rows of captions that stand in a file twice: the image, its captions and what names them are the same.

A row with one caption and no id of its own is never taken for a repetition: two people may write the same.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from openblip.data.sample import BrokenSample
from openblip.data.sources.cells import given_id

__all__ = ["Repeats", "repeated_images"]

_OWN_IDS = ("id", "caption_id", "sentid", "sen_id", "retrieval_key")
"""columns that name a caption"""


class Repeats:
    """The rows of a file, compared by hashes; 16 bytes for each that may be a repetition."""

    def __init__(self) -> None:
        self._rows, self._hashes = array("q"), array("q")

    def add(self, number: int, row: Mapping[str, Any], images: tuple[str, ...], texts: tuple[str, ...]) -> None:
        """Note the row `number`."""
        own = tuple(given_id(row.get(name)) for name in _OWN_IDS)
        if len(texts) > 1 or any(own):
            self._rows.append(number)
            self._hashes.append(hash((own, images, texts)))

    def found(self) -> np.ndarray:
        """int64: the rows that repeat one before them."""
        _, first = np.unique(np.array(self._hashes, dtype=np.int64), return_index=True)
        return np.delete(np.array(self._rows, dtype=np.int64), first)


def repeated_images(rows: np.ndarray, name_of: Callable[[int], str], file: str) -> Iterator[BrokenSample]:
    """What is to be told of the `rows` that `Repeats` found, for each image once."""
    for name, count in Counter(map(name_of, rows.tolist())).items():
        yield BrokenSample("bad-row", f"{file} {name}", f"its row stands there {count + 1} times; one is used")
