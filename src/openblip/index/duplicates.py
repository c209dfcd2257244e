"""Near-duplicates: images that look alike by a perceptual hash, confirmed by their vectors, or by vectors alone.

It is the difference hash: an image as 8 x 9 grey values, and whether each is brighter than the next in its row.
Copies in another size or compression differ in few of the 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from openblip.index.vectors import VectorStore

__all__ = ["alike_by_hash", "alike_by_vectors", "confirmed", "difference_hashes", "groups_of"]

_BITS = 64
_PAIRS = 256
"""whose vectors are read at once"""
_GREY = torch.tensor([0.299, 0.587, 0.114])
Pair = tuple[int, int]


def difference_hashes(pixels: Tensor) -> list[int]:
    """uint8 [B, 3, H, W] -> 64 bits each, as signed numbers."""
    grey = torch.einsum("bchw,c->bhw", pixels.float().cpu(), _GREY)[:, None]
    small = interpolate(grey, (8, 9), mode="area")[:, 0]
    # A step of less than one grey value is noise of the compression.
    bits = (small[:, :, :-1] > small[:, :, 1:] + 1).flatten(1).numpy()
    return np.packbits(bits, axis=1).view(">i8")[:, 0].tolist()


def alike_by_hash(hashes: Sequence[int], distance: int) -> Iterator[Pair]:
    """Pairs of positions whose hashes differ in at most `distance` bits; of each hash its first position alone is
    compared with other hashes.

    Hashes that differ in d bits agree in at least one of d + 1 bands: only those that share a band are compared.
    """
    values, owner = np.unique(np.array(hashes, np.int64).view(np.uint64), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(owner[order])) + 1) if len(order) else []
    for own in members:
        yield from ((int(own[0]), int(other)) for other in own[1:])
    seen: set[Pair] = set()
    for low, high in pairwise(np.linspace(0, _BITS, distance + 2).astype(int).tolist()):
        band = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for place, one in enumerate(same[:-1]):
                others = same[place + 1 :]
                differ = np.bitwise_count(values[others] ^ values[one])
                for other in others[differ <= distance].tolist():
                    pair = int(members[one][0]), int(members[other][0])
                    if pair not in seen:
                        seen.add(pair)
                        yield pair


def alike_by_vectors(store: VectorStore, numbers: Sequence[int], similarity: float) -> Iterator[Pair]:
    """Pairs of positions in `numbers` whose vectors have at least that cosine, all compared with all."""
    step = max(1, min(4096, 2**24 // (store.shape[0] * store.shape[1])))
    for start in range(0, len(numbers), step):
        rows = _flat(store.read(numbers[start : start + step]))
        for other in range(start, len(numbers), step):
            columns = rows if other == start else _flat(store.read(numbers[other : other + step]))
            close = (rows @ columns.T >= similarity).nonzero() + torch.tensor([start, other])
            yield from ((int(one), int(two)) for one, two in close.tolist() if one < two)


def confirmed(
    store: VectorStore, numbers: Sequence[int], pairs: Iterable[Pair], similarity: float
) -> Iterator[Pair]:
    """Those of some pairs of positions in `numbers` whose vectors have at least that cosine."""
    left = iter(pairs)
    while part := list(islice(left, _PAIRS)):
        first, second = (_flat(store.read([numbers[pair[side]] for pair in part])) for side in (0, 1))
        cosines = (first * second).sum(1).tolist()
        yield from (pair for pair, cosine in zip(part, cosines, strict=True) if cosine >= similarity)


def _flat(vectors: Tensor) -> Tensor:
    """[B, Q, E] -> [B, Q * E] of length 1, whose products are the mean cosines of equal queries."""
    return vectors.flatten(1) / vectors.shape[1] ** 0.5


def groups_of(count: int, pairs: Iterable[Pair]) -> list[list[int]]:
    """Positions that hang together by pairs, groups of two and more in order of their first."""
    parent = list(range(count))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for one, two in pairs:
        first, second = sorted((root(one), root(two)))
        parent[second] = first
    found: dict[int, list[int]] = {}
    for one in range(count):
        found.setdefault(root(one), []).append(one)
    return [group for group in found.values() if len(group) > 1]
