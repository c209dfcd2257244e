"""Vectors of images on disk: float16 in segments that only grow, mapped into memory, searched exactly.

Shapes: Q vectors of each image (1 of BLIP, one for each query of BLIP-2), E joint width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from openblip.core.errors import UserError

__all__ = ["SEGMENT_BYTES", "SegmentStore", "Term", "VectorStore"]

SEGMENT_BYTES = 2**26
"""of one file"""
_BLOCK_BYTES = 2**22
"""of a block in float32 while it is searched: it stays in a core's cache"""


@dataclass(frozen=True)
class Term:
    """Part of a query."""

    vector: Tensor
    """normalised: [E] of a text, which is compared with the best of an image's vectors (of BLIP-2's queries);
    [Q, E] of an image, whose vectors are each compared with the one of the same query, and averaged"""
    weight: float = 1.0


class VectorStore(Protocol):
    """Where vectors lie, numbered from 0 in the order they came; which of them count, the catalog says."""

    def append(self, vectors: Tensor, first: int) -> None:
        """Write normalised vectors [B, Q, E] as number `first` and on; they are on disk when this returns."""
        ...

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Vectors by their numbers, float32 [B, Q, E]."""
        ...

    def search(
        self, terms: Sequence[Term], top: int, total: int, allowed: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor]:
        """The `top` vectors of the first `total` by the weighted sum of their cosines with `terms`.

        Args:
            allowed: bool [total]; None is all.

        Returns:
            scores float32 [K], the highest first, and numbers int64 [K].
        """
        ...


class SegmentStore:
    """A `VectorStore` in files of a folder.

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
        """As `VectorStore.search`; every vector is compared."""
        best, numbers = torch.empty(0), torch.empty(0, dtype=torch.int64)
        compare = _Comparison(terms)
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


class _Comparison:
    """A query, ready to be compared with blocks of vectors."""

    def __init__(self, terms: Sequence[Term]) -> None:
        texts = [term for term in terms if term.vector.ndim == 1]
        images = [term for term in terms if term.vector.ndim == 2]
        self.texts = torch.stack([term.vector for term in texts]).float().T if texts else None  # [E, C]
        self.weights = torch.tensor([term.weight for term in texts])
        # Images' cosines are linear in the vectors, so that all of them are one vector of Q * E.
        self.images = sum(term.weight * term.vector.float().flatten() / len(term.vector) for term in images)

    def __call__(self, block: Tensor) -> Tensor:
        """Scores [B] of float32 [B, Q, E]."""
        scores = torch.zeros(len(block))
        if self.texts is not None:
            scores += (block @ self.texts).amax(1) @ self.weights
        if isinstance(self.images, Tensor):
            scores += block.flatten(1) @ self.images
        return scores
