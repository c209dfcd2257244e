"""The whole run: stages one after another within one budget of time, each in a process of its own.

A stage that fails, crashes, needs too much memory or too much time is recorded with the last line of what it said,
and the next one runs. The result is written after each row. SIGTERM, SIGINT or SIGHUP ends the stages that were
started, and what there is by then is the result. torch is not imported here, but for a pretended run: its stages
are forked from this process, since to import the same libraries eight times is most of what it would do.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.gpu.aims import verdicts
from benchmarks.gpu.stages import STAGES, Stage, last_line
from benchmarks.gpu.stages import main as stage_main
from openblip.core.files import write_json

__all__ = ["run"]

MINUTES = 8.0
PRETENDED_MINUTES = 60.0
"""since a CPU's speed says nothing: no stage of a pretended run has a limit of its own"""
LEAST = 10.0
"""seconds under which no stage begins"""
_POLL = 0.2
_SHARED = (
    *("torch", "torch._dynamo", "torch._inductor", "timm", "torchvision"),
    *("transformers", "accelerate"),
)
"""what stages import and a pretended run imports once; modules of ours are each stage's own to import"""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def _noting_signals() -> Iterator[list[signal.Signals]]:
    """The signals that have come: acted upon between polls, so that no process is started and then forgotten."""
    came: list[signal.Signals] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signal.Signals(signum))

    before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class _Forked:
    """As much of `subprocess.Popen` as a stage needs, for one that is forked from this process."""

    def __init__(self, arguments: tuple[str, str, str], log: Path) -> None:
        reading, writing = os.pipe()
        self.process = get_context("fork").Process(target=self._main, args=(arguments, log, reading, writing))
        self.process.start()
        os.close(reading)
        assert self.process.pid is not None
        self.stdin, self.pid = os.fdopen(writing, "w"), self.process.pid
        with suppress(ProcessLookupError):  # whichever of the two is first: the group is there when it is to end
            os.setpgid(self.pid, self.pid)

    @staticmethod
    def _main(arguments: tuple[str, str, str], log: Path, reading: int, writing: int) -> None:
        os.setpgid(0, 0)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)
        sys.stdin = os.fdopen(0)
        with log.open("w") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_DFL)
        stage_main(*arguments)

    @property
    def returncode(self) -> int:
        """Of a stage that has ended."""
        assert self.process.exitcode is not None
        return self.process.exitcode

    def poll(self) -> int | None:
        """Its code; None while it runs."""
        return self.process.exitcode

    def wait(self) -> int:
        """Wait for its end."""
        self.process.join()
        return self.returncode


@dataclass
class _Process:
    """A stage that has been started and waits for its turn."""

    stage: Stage
    popen: subprocess.Popen[str] | _Forked
    rows: Path
    log: Path
    ended: bool = False

    @classmethod
    def start(cls, stage: Stage, folder: Path, pretend: bool) -> _Process:
        rows, log = folder / f"{stage.name}.json", folder / f"{stage.name}.log"
        arguments = (f"{stage.package}.{stage.name}", str(rows), str(int(pretend)))
        if pretend:
            return cls(stage, _Forked(arguments, log), rows, log)
        command = [sys.executable, "-m", "benchmarks.gpu.stages", *arguments]
        with log.open("w") as file:
            # A session of its own, so that what a stage starts ends with it.
            popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, text=True, start_new_session=True
            )
        return cls(stage, popen, rows, log)

    def found(self) -> list[dict[str, Any]]:
        """Rows so far."""
        rows: list[dict[str, Any]] = json.loads(self.rows.read_text("utf-8")) if self.rows.exists() else []
        return rows

    def end(self) -> None:
        """End it and all that it started."""
        if not self.ended:
            self.ended = True
            with suppress(ProcessLookupError):  # none of them is left
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()


def run(
    out: Path,
    *,
    pretend: bool = False,
    minutes: float = MINUTES,
    only: Sequence[str] = (),
    all_stages: Sequence[Stage] = STAGES,
) -> dict[str, Any]:
    """Run the stages and give the result, which is in `out`/gpu.json too; `out`/log.txt has what they said.

    Args:
        minutes: after which it ends, whatever is still to do.
        only: names of stages; none is all.
    """
    began = time.monotonic()
    minutes = PRETENDED_MINUTES if pretend else minutes
    result: dict[str, Any] = {"name": "gpu", "pretend": pretend, "minutes": minutes, "stages": []}
    result["at"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    stages = [stage for stage in all_stages if not only or stage.name in only]
    log = out / "log.txt"
    out.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    with _noting_signals() as came, tempfile.TemporaryDirectory() as place:
        for name in _SHARED if pretend else ():
            with suppress(ImportError):  # the stage that needs it tells
                importlib.import_module(name)
        started = [_Process.start(stages[0], Path(place), pretend)]
        try:
            for number, stage in enumerate(stages):
                # The next stage imports its libraries while this one draws its models: some ten seconds of another
                # core. Cases bound by the host may see the last of them (their spread tells), but to import between
                # stages would cost a minute of the eight.
                if number + 1 < len(stages) and not came:
                    started.append(_Process.start(stages[number + 1], Path(place), pretend))
                left = 60 * minutes - (time.monotonic() - began)
                entry: dict[str, Any] = {"name": stage.name, "subject": stage.subject}
                result["stages"].append(entry)
                process = started[number]
                if left < LEAST:
                    process.end()
                    entry |= {
                        "status": "left out",
                        "error": f"{max(0.0, left):.0f} s of {minutes:g} minutes were left",
                    }
                else:
                    seconds = left if pretend else min(stage.seconds, left)
                    _follow(process, seconds, entry, came, lambda: write_json(out / "gpu.json", result))
                with log.open("a") as file:
                    file.write(f"== {stage.name}: {entry['status']}\n{process.log.read_text(errors='replace')}\n")
                result["seconds"] = round(time.monotonic() - began, 1)
                if came:
                    result["stopped"] = came[0].name
                if not pretend:
                    result["aims"] = verdicts(result["stages"])
                write_json(out / "gpu.json", result)
                print(f"{stage.name}: {entry['status']} {entry.get('error', '')}".rstrip(), flush=True)
                if came or (stage.needed and entry["status"] != "done"):
                    break
        finally:
            for process in started:
                process.end()
    return result


def _follow(
    process: _Process, seconds: float, entry: dict[str, Any], came: list[signal.Signals], keep: Callable[[], None]
) -> None:
    """Let a stage run for so many seconds at most, or until a signal; fill in what it gave, kept after each row."""
    began = time.monotonic()
    try:
        assert process.popen.stdin is not None
        process.popen.stdin.write(f"{seconds}\n")
        process.popen.stdin.flush()  # and left open: its end tells the stage that this process is gone
    except BrokenPipeError:
        pass  # it ended while it imported; its code tells
    kept = 0
    while process.popen.poll() is None and time.monotonic() - began < seconds and not came:
        time.sleep(_POLL)
        rows = process.found()
        if len(rows) > kept:
            kept, entry["rows"] = len(rows), rows
            keep()
    late = process.popen.poll() is None
    process.end()
    entry["rows"], entry["seconds"] = process.found(), round(time.monotonic() - began, 1)
    code = process.popen.returncode
    said = last_line(process.log.read_text(errors="replace"))
    if late and came:
        entry |= {"status": "stopped", "error": f"stopped by {came[0].name}"}
    elif late:
        entry |= {"status": "out of time", "error": f"ended after {seconds:.0f} s"}
    elif code < 0:
        entry |= {"status": "failed", "error": f"ended by signal {signal.Signals(-code).name}; last words: {said}"}
    elif code > 0:
        entry |= {"status": "failed", "error": said}
    elif entry["rows"] and all("error" in row for row in entry["rows"]):
        entry |= {"status": "failed", "error": f"no case was measured; the first: {entry['rows'][0]['error']}"}
    else:
        entry["status"] = "done"
