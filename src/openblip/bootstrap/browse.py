"""The decisions of a run, to look through: samples whose texts fit a filter, a page at a time, with their images.

    decisions = Decisions("clean")
    found = decisions.find(Filter(kept=False, origin="web", words="red bus"))
    decisions.image(found.samples[0].number)

The table is read a chunk at a time, so memory does not grow with the run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from openblip.bootstrap.job import open_part
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import load_output, load_run
from openblip.bootstrap.table import Origin, Row, Text, read_table
from openblip.core.errors import UserError
from openblip.core.text import escaped
from openblip.data.images import MAX_PIXELS, decode_image
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import source_parts

__all__ = ["Count", "Decisions", "Filter", "Found", "Judged", "source_image"]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which texts are wanted; None is all."""

    kept: bool | None = None
    origin: Origin | None = None
    reason: str | None = None
    """one of `policy.REASONS`"""
    words: str = ""
    """a text must hold each of them, in any order; upper and lower case are alike"""

    @property
    def of_texts(self) -> bool:
        """Whether anything is asked of a text; otherwise samples without one are found too."""
        return self != Filter()

    def fits(self, text: Text) -> bool:
        """Whether a text is wanted."""
        return (
            (self.kept is None or text.kept == self.kept)
            and (self.origin is None or text.origin == self.origin)
            and (self.reason is None or text.reason == self.reason)
            and all(word in text.text.casefold() for word in self.words.casefold().split())
        )


class Judged(NamedTuple):
    """A sample that was found."""

    number: int
    """of its row in the table of the whole run, from 0"""
    row: Row
    fits: list[bool]
    """of each text of the row, whether the filter wants it"""


class Found(NamedTuple):
    """A page of samples."""

    samples: list[Judged]
    next: int | None
    """row that the next page begins at; None at the end of the table"""


class Count(NamedTuple):
    """How many texts share an origin, a decision and its reason."""

    origin: Origin
    kept: bool
    reason: str
    texts: int


class Decisions:
    """A complete run, opened for reading; its methods may be called from several threads.

    Args:
        run: the folder of the run. Every row is read once, to be counted.

    Raises:
        UserError: there is no run, or it is not complete.
    """

    def __init__(self, run: Path | str) -> None:
        places = Places(Path(run))
        config, _ = load_run(run)
        self.policy = load_output(run).policy
        self.source = config.source
        self.samples = self.unusable = 0
        self._starts: list[tuple[int, Path]] = []
        counted: Counter[tuple[Origin, bool, str]] = Counter()
        for table in sorted(places.tables.glob("*.parquet")):
            self._starts.append((self.samples, table))
            for row in read_table(table):
                self.samples += 1
                self.unusable += row.status != "ok"
                counted.update((text.origin, text.kept, text.reason) for text in row.texts)
        self.counts = [Count(*key, texts) for key, texts in sorted(counted.items(), reverse=True)]
        self._read = lru_cache(maxsize=4)(read_table)
        self._source_lock = threading.Lock()

    def find(self, wanted: Filter, *, start: int = 0, count: int = 24, most: int = 20_000) -> Found:
        """Samples of which at least one text is wanted, in the table's order.

        Args:
            start: first row to look at.
            count: samples of a page.
            most: rows to look at; a page may hold fewer samples where a filter is narrow, and `next` goes on.

        Raises:
            UserError: the table cannot be read any more.
        """
        samples: list[Judged] = []
        for number, row in self._rows(start):
            if len(samples) == count or number - start >= most:
                return Found(samples, number)
            fits = [wanted.fits(text) for text in row.texts]
            if any(fits) or not wanted.of_texts:
                samples.append(Judged(number, row, fits))
        return Found(samples, None)

    def image(self, number: int, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The image of a row, read from the run's source.

        Raises:
            UserError: there is no such row, or the source cannot be read or has changed.
            BrokenSample: the image cannot be used.
        """
        found = next(self._rows(number), None) if 0 <= number < self.samples else None
        if found is None:
            raise UserError(f"the run has no row {number}")
        with self._source_lock:  # a source is not made for several threads
            return source_image(found[1], self.source, min_side=min_side, max_pixels=max_pixels)

    def _rows(self, start: int) -> Iterator[tuple[int, Row]]:
        """Numbers and rows from `start` on."""
        for place, (first, table) in enumerate(self._starts):
            end = self._starts[place + 1][0] if place + 1 < len(self._starts) else self.samples
            if end <= start:
                continue
            rows = self._read(table)
            if len(rows) != end - first:
                raise UserError("the run has changed since it was opened")
            for number in range(max(start, first), end):
                yield number, rows[number - first]


def source_image(
    row: Row, source: SourceConfig, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The image of a row, from the part of the source that it was read from and nowhere else.

    Raises:
        UserError: the source cannot be read, or has another sample in the row's place.
        BrokenSample: the image cannot be used.
    """
    part = next((part for part in source_parts(source).parts if part.path == row.part), None)
    opened = None if part is None else open_part(part)
    if opened is None or not 0 <= row.index < len(opened):
        raise UserError(f"{source.path} does not hold the sample {row.key} any more")
    sample = opened[row.index]
    if escaped(sample.key) != row.key:  # as tables write names
        raise UserError(f"{source.path} has changed since the run: {sample.key} stands where {row.key} stood")
    return decode_image(sample, min_side=min_side, max_pixels=max_pixels)
