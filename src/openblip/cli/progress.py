"""How far a command is, on standard error: a bar on a terminal, elsewhere a line now and then, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from openblip.cli.arguments import person
from openblip.cli.launched import is_first

__all__ = ["PLAIN_LINE_SECONDS", "progress"]

PLAIN_LINE_SECONDS = 10.0


@contextmanager
def progress(
    total: int | None, *, done: int = 0, unit: str = "images", lines: bool = False
) -> Iterator[Callable[[int], None]]:
    """Within, call what is given with the number that is done; rate and time left are shown from the first call on.

    Args:
        total: None where it is not known.
        done: that were done before and say nothing about the rate.
        lines: whether lines are written where standard error is no terminal.

    Of several processes the first alone shows it.
    """
    began = time.monotonic()
    last = float("-inf")

    def speed(now: int) -> str:
        rate = (now - done) / max(time.monotonic() - began, 1e-9)
        if total is None:
            return f"{rate:.3g} {unit}/s"
        left = timedelta(seconds=round((total - now) / rate)) if rate else "unknown time"
        return f"{rate:.3g} {unit}/s, {left} left"

    def tell(now: int) -> None:
        nonlocal last
        if now == total or time.monotonic() - last >= PLAIN_LINE_SECONDS:
            last = time.monotonic()
            of = "" if total is None else f" of {total}"
            print(f"openblip: {now}{of} {unit}, {speed(now)}", file=sys.stderr, flush=True)

    if not is_first():
        yield lambda now: None
        return
    if not sys.stderr.isatty():
        yield tell if lines else lambda now: None
        return
    if total == 1:
        yield lambda now: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    console = Console(stderr=True, soft_wrap=True)  # results pass through it, whose lines stay whole
    with Progress(*columns, console=console, redirect_stdout=person(), transient=True) as bar:
        task = bar.add_task(unit, total=total, completed=done, speed="")
        yield lambda now: bar.update(task, completed=now, speed=speed(now))
