"""How far a long command is: a bar on a terminal, plain lines now and then elsewhere, both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

__all__ = ["PLAIN_LINE_SECONDS", "showing"]

PLAIN_LINE_SECONDS = 10.0


@contextmanager
def showing(total: int, *, done: int = 0, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Within, call what is given with the number that is done; rate and time left are told from the first call on.

    Args:
        done: that were done before and say nothing about the rate.
    """
    began = time.monotonic()

    def told(now: int) -> str:
        rate = (now - done) / max(time.monotonic() - began, 1e-9)
        left = timedelta(seconds=round((total - now) / rate)) if rate else "unknown time"
        return f"{rate:.3g} {unit}/s, {left} left"

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(unit, total=total, completed=done, told="")
            yield lambda now: bar.update(task, completed=now, told=told(now))
        return
    last = float("-inf")

    def tell(now: int) -> None:
        nonlocal last
        if now >= total or time.monotonic() - last >= PLAIN_LINE_SECONDS:
            last = time.monotonic()
            print(f"openblip: {now} of {total} {unit}, {told(now)}", file=sys.stderr, flush=True)

    yield tell
