"""Measuring on data that are shared out over ranks: each rank takes a part, and what they find is put together.

    with sharing():
        for sample in samples[own_part(len(samples))]:      # every sample on one rank, none on two
            found.append(measure(sample))
        everything = joint(found)                           # on every rank, in the samples' order

    with sharing():
        in_turns(images, 16, work, take)                    # 16 at a time; the first rank takes what is found

Outside `sharing`, and in one process, a part is the whole and `joint` gives back what it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from openblip.core.errors import ToldElsewhere, UserError, first_line
from openblip.core.runtime import rank, world_size

__all__ = ["in_turns", "is_first", "joint", "joint_sum", "offset", "own_part", "own_place", "sharing", "together"]

_Found = TypeVar("_Found")
_Thing = TypeVar("_Thing")
_SHARING: ContextVar[bool] = ContextVar("sharing", default=False)
_SIGNAL_SECONDS = 1.0
"""after a process has gone: a launcher signals the others so soon"""
_groups: dict[Any, Any] = {}
"""of each default process group, the one through which objects go"""


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


def own_place() -> tuple[int, int]:
    """This rank's number, and how many share the work."""
    return (rank(), world_size()) if _SHARING.get() else (0, 1)


def own_part(count: int) -> slice:
    """This rank's part of `count` things: contiguous, as large as every other's or larger by one."""
    number, parts = own_place()
    return slice(count * number // parts, count * (number + 1) // parts)


def joint(found: Sequence[_Found]) -> list[_Found]:
    """What all ranks have found, one rank's after another's; every rank must call."""
    if not _SHARING.get():
        return list(found)
    return [one for part in _all_of(list(found)) for one in part]


def offset(count: int) -> int:
    """How many things the ranks before this one have, if this one has `count`; every rank must call."""
    counts = joint([count])
    return sum(counts[: rank()]) if _SHARING.get() else 0


def joint_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks of a tensor on the CPU; every rank must call."""
    first, *others = joint([tensor])
    return sum(others, start=first)


def together(do: Callable[[], _Found]) -> list[_Found]:
    """What `do` gives on each rank, in the ranks' order; every rank must call.

    Raises:
        UserError: what a rank has raised, on all of them, of which the first reports it; or one has ended.
    """
    if not _SHARING.get():
        return [do()]
    own: tuple[list[_Found], str]
    try:
        own = [do()], ""
    except UserError as error:
        own = [], str(error)
    told = _all_of(own)
    if mistake := next((mistake for found, mistake in told if not found), ""):
        raise UserError(mistake) if rank() == 0 else ToldElsewhere(mistake)
    return [one for found, _ in told for one in found]


def in_turns(
    things: Sequence[_Thing],
    size: int,
    work: Callable[[list[_Thing]], Generator[_Found, None, None]],
    take: Callable[[_Found], None],
) -> None:
    """Work on things `size` at a time, each piece on one rank, and take what is found in order on the first rank.

    The pieces are those of one process, whatever their number: what is found in a piece depends on nothing else.
    A turn is one piece for each rank, and ends when all have done theirs. Every rank must call.

    Args:
        work: yields one result for each piece of the things that it is given; it is closed at the end.
        take: called on the first rank with each result.

    Raises:
        UserError: from any rank, on all; or the ranks were given different things.
    """
    number, parts = own_place()
    if len(counts := set(together(lambda: len(things)))) > 1:
        raise UserError(
            f"the processes find {min(counts)} to {max(counts)} things to work on; give all of them the same data"
        )
    starts = range(0, len(things), size)
    own = [thing for start in starts[number::parts] for thing in things[start : start + size]]
    with closing(work(own)) as found:

        def step(before: list[list[_Found]], more: bool) -> list[_Found]:
            if number == 0:
                for part in before:
                    for one in part:
                        take(one)  # here, so that every rank learns of a mistake in it
            return [next(found)] if more else []

        before: list[list[_Found]] = []
        for turn in (*range(0, len(starts), parts), len(starts)):
            before = together(partial(step, before, turn + number < len(starts)))


def _all_of(one: _Found) -> list[_Found]:
    """What each rank has.

    Objects go through gloo: NCCL would need them on GPUs, and would not notice that a process has gone.
    """
    default = dist.group.WORLD
    if default not in _groups:
        plain = dist.get_backend() == "gloo"
        _groups.clear()
        _groups[default] = default if plain else dist.new_group(backend="gloo")
    parts: list[Any] = [None] * world_size()
    try:
        dist.all_gather_object(parts, one, group=_groups[default])
    except RuntimeError as error:
        time.sleep(_SIGNAL_SECONDS)  # a signal that came to all ends this process here
        raise UserError(f"another process that shares the work has ended ({first_line(error)})") from error
    return parts
