"""What a run tells: metrics.jsonl, log.txt, trackers, and a line for whoever watches.

On a terminal the line moves (losses, learning rate, images for each second, time left); into a file or a pipe a
plain line is written now and then. Only the first process writes anything.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from openblip.core.files import append_jsonl, read_jsonl, write_bytes
from openblip.core.runtime import is_main
from openblip.core.text import json_bytes, text_bytes

if TYPE_CHECKING:  # who uses a model and trains none does without it
    from accelerate import Accelerator

__all__ = ["RunLog", "format_duration", "format_metrics"]

PLAIN_LINE_SECONDS = 10.0
_QUIET = frozenset({"step", "epoch", "time", "split", "learning_rate", "images_per_second", "skipped"})


def format_duration(seconds: float) -> str:
    """3725 -> "1:02:05", 65 -> "1:05"."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def format_metrics(record: dict[str, Any]) -> str:
    """Names and values of a record, four digits each, the run's own columns left out."""
    return "  ".join(
        f"{name} {value:.4g}"
        for name, value in record.items()
        if name not in _QUIET and isinstance(value, int | float)
    )


class _Bar(Progress):
    """A bar with its metrics below it, which may take more lines than one."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["metrics"], style="dim")


class RunLog:
    """Writes a run's records and shows how far it is; a context, so that the terminal is left clean.

    Args:
        folder: the run's folder.
        unit: what is counted for each second.
        total_steps: where the bar ends.
        show: whether to show anything; files are written all the same.
        on_record: called with each record after it is written, on the first process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        title: str,
        unit: str = "images",
        total_steps: int,
        accelerator: Accelerator,
        show: bool = True,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.folder = folder
        self.title, self.unit = title, unit
        self.total_steps = total_steps
        self.accelerator = accelerator
        self.on_record = on_record
        self.main = is_main()
        self.show = show and self.main
        self.console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_plain = float("-inf")

    def __enter__(self) -> RunLog:
        if self.show and self.console.is_terminal:
            self._bar = _Bar(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[speed]}"),
                console=self.console,
                transient=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total_steps, speed="", metrics="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        for tracker in self.accelerator.trackers:
            tracker.finish()
        if error is not None and self.main:
            # With a full disk this line fails too, and the error that is on its way says more.
            with suppress(OSError):
                self._append(f"{self.title}: ended by {type(error).__name__}: {error}")

    def rewind(self, records: int) -> int:
        """Keep the first `records` lines of metrics.jsonl, those of the state that the run resumes from."""
        path = self.folder / "metrics.jsonl"
        if self.main and path.exists():
            kept = read_jsonl(path)[:records]
            write_bytes(path, b"".join(json_bytes(record) + b"\n" for record in kept))
        return records

    def say(self, text: str) -> None:
        """A sentence for log.txt and for whoever watches."""
        if not self.main:
            return
        self._append(text)
        if self.show:
            self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def record(self, record: dict[str, Any], *, seconds_left: float | None = None) -> None:
        """One line of metrics.jsonl, with "step", "epoch", "time", "split" and named metrics."""
        if not self.main:
            return
        append_jsonl(self.folder / "metrics.jsonl", record)
        split = record["split"]
        metrics = {
            f"{split}/{name}": value
            for name, value in record.items()
            if isinstance(value, int | float) and name not in ("step", "time")
        }
        self.accelerator.log(metrics, step=record["step"])
        self._tell(record, seconds_left)
        if self.on_record is not None:
            self.on_record(record)

    def ends_at(self, total_steps: int) -> None:
        """Set anew where the bar ends."""
        self.total_steps = total_steps
        if self._bar is not None:
            self._bar.update(self._task, total=total_steps)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def _append(self, text: str) -> None:
        with open(self.folder / "log.txt", "ab") as file:
            file.write(text_bytes(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"))

    def _tell(self, record: dict[str, Any], seconds_left: float | None) -> None:
        parts = [f"epoch {record['epoch']:.2f}", format_metrics(record)]
        speed = []
        if "learning_rate" in record:
            parts.append(f"lr {record['learning_rate']:.2e}")
            speed.append(f"{record.get('images_per_second', 0):.1f} {self.unit}/s")
        if seconds_left is not None:
            speed.append(f"{format_duration(seconds_left)} left")
        is_training = record["split"] == "train"
        place = f"{self.title} {record['split']}: step {record['step']}/{self.total_steps}"
        text = "  ".join([place, *parts, *speed])
        due = not is_training or time.monotonic() - self._last_plain >= PLAIN_LINE_SECONDS
        due = due or record["step"] >= self.total_steps
        if due:
            self._last_plain = time.monotonic()
            self._append(text)
        if not self.show:
            return
        if self._bar is not None:
            if is_training:
                self._bar.update(
                    self._task, completed=record["step"], speed="  ".join(speed), metrics="  ".join(parts)
                )
            else:
                self.console.print(text, markup=False)
        elif due:
            print(text, file=sys.stderr, flush=True)
