"""The order of samples: which sample of which source stands at each position of an epoch.

It is a pure function of (seed, epoch), the same on every rank and with any number of workers, so that to continue
in the middle of an epoch takes no more than the position.

A source is gone through pass by pass, each pass a new permutation of all its samples. Without weights an epoch
is one pass of every source, or that part of a pass which the source is to give. With weights each source gives its
share of the epoch. It continues in the next epoch where it stopped, so every sample of a source is seen equally
often whatever its share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openblip.core.errors import UserError

__all__ = ["EpochOrder", "Order", "Part"]

_SHUFFLE, _MIX = 1, 2  # keep the random streams of different purposes apart


@dataclass(frozen=True)
class Part:
    """What the order needs to know of one source."""

    size: int
    blocks: Sequence[range] | None = None
    """Contiguous ranges to shuffle among each other; None shuffles all samples freely."""
    window: int = 16
    """How many neighbouring blocks (in the shuffled order of blocks) mix their samples."""
    epoch_share: float = 1.0
    """Part of its samples that an epoch takes where there are no weights."""


@dataclass(frozen=True)
class EpochOrder:
    """One epoch of N samples: position -> (source, index)."""

    indices: np.ndarray
    """[N] index of the sample in its source."""
    sources: np.ndarray | None
    """uint16 [N] number of the source; None: all are of source 0."""

    def __len__(self) -> int:
        return len(self.indices)

    def source_of(self, position: int) -> int:
        return 0 if self.sources is None else int(self.sources[position])


class Order:
    """The endless order of samples over some sources.

    Args:
        weights: relative share of each source in an epoch, or None: in proportion to their sizes.
        length: samples in an epoch; None: the sum of the sizes (of the parts of them that an epoch takes).
        shuffle: False goes through the sources one after the other, as they are.

    Raises:
        UserError: some sources have a weight and others not, or one has none of an epoch's samples.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        seed: int,
        shuffle: bool,
        weights: Sequence[float | None] | None = None,
        length: int | None = None,
    ) -> None:
        given = [weight for weight in weights or () if weight is not None]
        if given and len(given) != len(parts):
            raise UserError(f"{len(given)} of {len(parts)} data sources have a weight; give one to all or to none")
        if any(not 0 < weight < math.inf for weight in given):
            raise UserError(f"weights of data sources must be above 0, not {', '.join(f'{w:g}' for w in given)}")
        if length is not None and length < 1:
            raise UserError(f"an epoch must hold at least one sample, not {length}")
        self._parts, self._seed, self._shuffle = list(parts), seed, shuffle
        if not all(part.size for part in parts):
            raise UserError(f"data source {[part.size for part in parts].index(0) + 1} holds no samples")
        # With weights, which say themselves what each gives, an epoch is as long as all are.
        sizes = [part.size if given else max(1, round(part.size * part.epoch_share)) for part in parts]
        total = length or sum(sizes)
        self.quotas = _share_out(total, given or sizes)
        """Samples of each source in an epoch."""
        if 0 in self.quotas:
            raise UserError(
                f"data source {self.quotas.index(0) + 1} of {len(parts)} would give none of the {total} samples of "
                "an epoch; raise its weight or the epoch's length, or leave it out"
            )

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return sum(self.quotas)

    def epoch(self, epoch: int) -> EpochOrder:
        """Return the order of one epoch (0, 1, ...)."""
        drawn = [self._draw(number, epoch) for number in range(len(self._parts))]
        if len(drawn) == 1:
            return EpochOrder(drawn[0], None)
        sources = np.repeat(np.arange(len(drawn), dtype=np.uint16), self.quotas)
        if self._shuffle:
            np.random.default_rng([self._seed, _MIX, epoch]).shuffle(sources)
        indices = np.empty(len(sources), dtype=np.result_type(*drawn))
        for number, mine in enumerate(drawn):
            indices[sources == number] = mine
        return EpochOrder(indices, sources)

    def _draw(self, number: int, epoch: int) -> np.ndarray:
        """Return the samples of source `number` in this epoch, in order."""
        size, quota = self._parts[number].size, self.quotas[number]
        start = epoch * quota
        pieces = []
        while quota > 0:
            turn, offset = divmod(start, size)
            piece = self._pass(number, turn)[offset : offset + quota]
            pieces.append(piece)
            start, quota = start + len(piece), quota - len(piece)
        if not pieces:
            return np.zeros(0, np.uint32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _pass(self, number: int, turn: int) -> np.ndarray:
        """Return one permutation of source `number`: shuffled blocks, and samples among `window` of them."""
        part = self._parts[number]
        kind = np.uint32 if part.size < 2**32 else np.int64
        if not self._shuffle:
            return np.arange(part.size, dtype=kind)
        rng = np.random.default_rng([self._seed, _SHUFFLE, number, turn])
        if part.blocks is None or len(part.blocks) <= part.window:
            return rng.permutation(np.arange(part.size, dtype=kind))
        blocks = [part.blocks[block] for block in rng.permutation(len(part.blocks))]
        groups = []
        for first in range(0, len(blocks), part.window):
            near = blocks[first : first + part.window]
            group = np.concatenate([np.arange(block.start, block.stop, dtype=kind) for block in near])
            rng.shuffle(group)
            groups.append(group)
        return np.concatenate(groups)


def _share_out(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` in proportion to `weights` by largest remainder."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * total
    shares = np.floor(exact).astype(np.int64)
    for number in np.argsort(shares - exact, kind="stable")[: total - int(shares.sum())]:
        shares[number] += 1
    return [int(share) for share in shares]
