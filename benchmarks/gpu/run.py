"""The whole run: stages one after another within one budget of time, each in a process of its own.

The next stage's process is started, and imports its libraries, while the one before it measures. A stage that
fails, crashes, needs too much memory or too much time is recorded with the last line of what it said, and the next
one runs. The result is written after each row. torch is not imported here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.stages import STAGES, Stage, last_line
from openblip.core.files import write_json

__all__ = ["run"]

MINUTES = 8.0
PRETENDED_MINUTES = 60.0
"""since a CPU's speed says nothing: no stage of a pretended run has a limit of its own"""
LEAST = 10.0
"""seconds under which no stage begins"""
_POLL = 0.2


@dataclass
class _Process:
    """A stage that has been started and waits for its turn."""

    stage: Stage
    popen: subprocess.Popen[str]
    rows: Path
    log: Path

    @classmethod
    def start(cls, stage: Stage, folder: Path, pretend: bool) -> _Process:
        rows, log = folder / f"{stage.name}.json", folder / f"{stage.name}.log"
        module = f"{stage.package}.{stage.name}"
        command = [sys.executable, "-m", "benchmarks.gpu.stages", module, str(rows), str(int(pretend))]
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
        if self.popen.poll() is None:
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
    with tempfile.TemporaryDirectory() as place:
        waiting = _Process.start(stages[0], Path(place), pretend)
        for number, stage in enumerate(stages):
            process = waiting
            if number + 1 < len(stages):
                waiting = _Process.start(stages[number + 1], Path(place), pretend)
            left = 60 * minutes - (time.monotonic() - began)
            entry: dict[str, Any] = {"name": stage.name, "subject": stage.subject}
            result["stages"].append(entry)
            if left < LEAST:
                process.end()
                entry |= {"status": "left out", "error": f"{max(0.0, left):.0f} s of {minutes:g} minutes were left"}
            else:
                _follow(process, left if pretend else min(stage.seconds, left), entry, out, result)
            with log.open("a") as file:
                file.write(f"== {stage.name}: {entry['status']}\n{process.log.read_text(errors='replace')}\n")
            result["seconds"] = round(time.monotonic() - began, 1)
            write_json(out / "gpu.json", result)
            print(f"{stage.name}: {entry['status']} {entry.get('error', '')}".rstrip(), flush=True)
            if stage.needed and entry["status"] != "done":
                if number + 1 < len(stages):
                    waiting.end()
                break
    return result


def _follow(process: _Process, seconds: float, entry: dict[str, Any], out: Path, result: dict[str, Any]) -> None:
    """Let a stage run for so many seconds at most; fill in what it gave, and keep that after each row."""
    began = time.monotonic()
    try:
        assert process.popen.stdin is not None
        process.popen.stdin.write(f"{seconds}\n")
        process.popen.stdin.close()
    except BrokenPipeError:
        pass  # it ended while it imported; its code tells
    kept = 0
    while process.popen.poll() is None and time.monotonic() - began < seconds:
        time.sleep(_POLL)
        rows = process.found()
        if len(rows) > kept:
            kept, entry["rows"] = len(rows), rows
            write_json(out / "gpu.json", result)
    late = process.popen.poll() is None
    process.end()
    entry["rows"], entry["seconds"] = process.found(), round(time.monotonic() - began, 1)
    code = process.popen.returncode
    said = last_line(process.log.read_text(errors="replace"))
    if late:
        entry |= {"status": "out of time", "error": f"ended after {seconds:.0f} s"}
    elif code < 0:
        entry |= {"status": "failed", "error": f"ended by signal {signal.Signals(-code).name}; last words: {said}"}
    elif code > 0:
        entry |= {"status": "failed", "error": said}
    else:
        entry["status"] = "done"
