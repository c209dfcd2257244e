"""Measuring on data that are shared out over ranks: each rank takes a part, and what they find is put together.

    with sharing():
        for sample in samples[own_part(len(samples))]:      # every sample on one rank, none on two
            found.append(measure(sample))
        everything = joint(found)                           # on every rank, in the samples' order

Outside `sharing`, and in one process, a part is the whole and `joint` gives back what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from openblip.core.runtime import rank, world_size

__all__ = ["is_first", "joint", "joint_sum", "offset", "own_part", "sharing"]

_Found = TypeVar("_Found")
_SHARING: ContextVar[bool] = ContextVar("sharing", default=False)


@contextmanager
def sharing(on: bool = True) -> Iterator[None]:
    """Within, measures share their data out over the ranks; every rank must run the same measures."""
    token = _SHARING.set(on and world_size() > 1)
    try:
        yield
    finally:
        _SHARING.reset(token)


def is_first() -> bool:
    """Whether this rank does what is done once for all parts."""
    return not _SHARING.get() or rank() == 0


def own_part(count: int) -> slice:
    """This rank's part of `count` things: contiguous, as large as every other's or larger by one."""
    number, parts = (rank(), world_size()) if _SHARING.get() else (0, 1)
    return slice(count * number // parts, count * (number + 1) // parts)


def joint(found: Sequence[_Found]) -> list[_Found]:
    """What all ranks have found, one rank's after another's; every rank must call."""
    if not _SHARING.get():
        return list(found)
    parts: list[list[_Found]] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, list(found))
    return [one for part in parts for one in part]


def offset(count: int) -> int:
    """How many things the ranks before this one have, if this one has `count`; every rank must call."""
    counts = joint([count])
    return sum(counts[: rank()]) if _SHARING.get() else 0


def joint_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks of a tensor on the CPU; every rank must call."""
    first, *others = joint([tensor])
    return sum(others, start=first)
