"""What an index asks of the place where its vectors lie, and how a query is compared with them.

Shapes: Q vectors of each image (1 of BLIP, one for each query of BLIP-2), E joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from openblip.index.filters import Filters

__all__ = ["Comparison", "Term", "VectorStore"]


@dataclass(frozen=True)
class Term:
    """Part of a query."""

    vector: Tensor
    """normalised: [E] of a text, which is compared with the best of an image's vectors (of BLIP-2's queries);
    [Q, E] of an image, whose vectors are each compared with the one of the same query, and averaged"""
    weight: float = 1.0


class VectorStore(Protocol):
    """Where vectors lie, numbered from 0 in the order they came; which of them count, the catalog says."""

    shape: tuple[int, int]
    """of an image's vectors, [Q, E]"""

    def append(self, vectors: Tensor, first: int) -> None:
        """Write normalised vectors [B, Q, E] as number `first` and on; they are on disk when this returns."""
        ...

    def settle(self) -> None:
        """After an update: make what only speeds up a search."""
        ...

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Vectors by their numbers, float32 [B, Q, E].

        Raises:
            UserError: some are missing.
        """
        ...

    def search(self, terms: Sequence[Term], top: int, filters: Filters | None = None) -> tuple[Tensor, Tensor]:
        """The `top` vectors of images that are there and pass, by the weighted sum of their cosines with `terms`.

        Returns:
            scores float32 [K], the highest first, and numbers int64 [K].
        """
        ...


class Comparison:
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
