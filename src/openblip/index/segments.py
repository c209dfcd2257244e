"""Vectors of images in files: float16 in segments that only grow, mapped into memory, searched exactly.

Shapes: Q vectors of each image (1 of BLIP, one for each query of BLIP-2), E joint width.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.index.catalog import Catalog
from openblip.index.filters import Filters
from openblip.index.vectors import Comparison, Term

__all__ = ["SEGMENT_BYTES", "SegmentStore", "Segments"]

SEGMENT_BYTES = 2**26
"""of one file"""
_BLOCK_BYTES = 2**22
"""of a block in float32 while it is searched: it stays in a core's cache"""


class Segments:
    """Vectors in files of a folder.

    Args:
        shape: of an image's vectors, [Q, E].

    Raises:
        UserError: on reading, a file is shorter than the catalog says.
    """

    def __init__(self, folder: Path, shape: tuple[int, int], *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder, self.shape = folder, shape
        self._row = 2 * shape[0] * shape[1]
        self.per_segment = max(1, segment_bytes // self._row)
        self._open: dict[int, np.ndarray] = {}

    def _file(self, segment: int) -> Path:
        return self.folder / f"{segment:06d}.float16"

    def append(self, vectors: Tensor, first: int) -> None:
        """As `VectorStore.append`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = vectors.to(torch.float16).cpu().numpy()
        while len(values):
            segment, place = divmod(first, self.per_segment)
            part = values[: self.per_segment - place]
            # What a killed writer left behind the vectors that count is written over.
            self._file(segment).touch()
            with open(self._file(segment), "r+b") as file:
                file.truncate(place * self._row)
                file.seek(place * self._row)
                file.write(part.tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._open.pop(segment, None)
            values, first = values[len(part) :], first + len(part)

    def _segment(self, number: int, rows: int) -> Tensor:
        """At least `rows` vectors of a segment, float16 [*, Q, E], mapped."""
        held = self._open.get(number)
        if held is None or len(held) < rows:
            file = self._file(number)
            there = file.stat().st_size // self._row if file.is_file() else 0
            if there < rows:
                raise UserError(f"{file} holds {there} vectors, not {rows}; remove the index and build it again")
            # "c": private pages, which torch takes for memory that may be written.
            held = np.memmap(file, np.float16, "c", shape=(rows, *self.shape))
            self._open[number] = held
        return torch.from_numpy(held)

    def read(self, numbers: Sequence[int]) -> Tensor:
        """As `VectorStore.read`."""
        found = torch.empty(len(numbers), *self.shape)
        for row, number in enumerate(numbers):
            segment, place = divmod(int(number), self.per_segment)
            found[row] = self._segment(segment, place + 1)[place]
        return found

    def blocks(self, total: int, allowed: np.ndarray | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `total` vectors that are allowed: float32 [B, Q, E] with their numbers int64 [B]."""
        step = max(1, _BLOCK_BYTES // (2 * self._row))
        for segment in range(-(-total // self.per_segment)):
            first = segment * self.per_segment
            rows = min(self.per_segment, total - first)
            held = self._segment(segment, rows)
            for start in range(0, rows, step):
                end = min(start + step, rows)
                numbers = torch.arange(first + start, first + end)
                block = held[start:end]
                if allowed is not None:
                    chosen = torch.from_numpy(allowed[first + start : first + end])
                    if not bool(chosen.any()):
                        continue
                    block, numbers = block[chosen], numbers[chosen]
                yield block.float(), numbers

    def search(
        self, terms: Sequence[Term], top: int, total: int, allowed: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """The `top` vectors of the first `total`, as `VectorStore.search`; every vector is compared.

        Args:
            allowed: bool [total]; None is all.
        """
        best, numbers = torch.empty(0), torch.empty(0, dtype=torch.int64)
        compare = Comparison(terms)
        for block, own in self.blocks(total, allowed):
            scores = compare(block)
            if len(best) == top and top:
                better = scores > best[-1]
                scores, own = scores[better], own[better]
            best, numbers = torch.cat((best, scores)), torch.cat((numbers, own))
            # Equal scores in the order of their numbers, so that a search gives the same each time.
            order = best.argsort(descending=True, stable=True)[:top]
            best, numbers = best[order], numbers[order]
        return best, numbers


class SegmentStore:
    """A `VectorStore` in files of a folder.

    Args:
        version: gives another value whenever the catalog has changed.
    """

    def __init__(self, folder: Path, catalog: Catalog, version: Callable[[], object]) -> None:
        self.shape: tuple[int, int] = tuple(catalog.settings["shape"])
        self.segments = Segments(folder, self.shape)
        self._catalog, self._version, self._lock = catalog, version, threading.RLock()
        self._live: tuple[object, np.ndarray] | None = None

    def append(self, vectors: Tensor, first: int) -> None:
        """As `VectorStore.append`."""
        self.segments.append(vectors, first)

    def settle(self) -> None:
        """As `VectorStore.settle`: nothing, since every vector is compared."""

    def read(self, numbers: Sequence[int]) -> Tensor:
        """As `VectorStore.read`."""
        return self.segments.read(numbers)

    def search(self, terms: Sequence[Term], top: int, filters: Filters | None = None) -> tuple[Tensor, Tensor]:
        """As `VectorStore.search`; every vector is compared."""
        allowed = self._allowed(filters)
        return self.segments.search(terms, top, len(allowed), None if allowed.all() else allowed)

    def _allowed(self, filters: Filters | None) -> np.ndarray:
        """bool [V]: which vectors belong to images that are there and pass; kept while nothing changes."""
        with self._lock:
            version = self._version()
            if filters or self._live is None or self._live[0] != version:
                allowed = np.zeros(self._catalog.num_vectors, bool)
                numbers = [number for number in self._catalog.vectors(filters) if number < len(allowed)]
                allowed[numbers] = True
                if filters:
                    return allowed
                self._live = version, allowed
            return self._live[1]
