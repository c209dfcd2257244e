"""How long a long piece of work takes, told once, after its first part was timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from openblip.core.runtime import rank
from openblip.training.log import format_duration

__all__ = ["Forecast"]


class Forecast:
    """Counts what is done and, after a while, says once on stderr how long the rest takes, if that is long.

    Args:
        name: of the work.
        total: how much there is of it, in `unit`s.
        after: seconds that are timed before it is told.
        least: seconds left below which nothing is told.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        *,
        after: float = 10.0,
        least: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._after, self._least, self._clock = after, least, clock
        self._start = clock()
        self._done = 0
        self._told = False

    def done(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        spent = self._clock() - self._start
        if self._told or spent < self._after:
            return
        self._told = True
        left = spent / self._done * (self._total - self._done)
        if left >= self._least and rank() == 0:
            rate = self._done / spent
            message = f"{self._name} of {self._total:,} {self._unit} takes about {format_duration(spent + left)}"
            print(f"{message} ({rate:,.0f} {self._unit} a second)", file=sys.stderr, flush=True)
