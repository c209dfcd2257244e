"""How ours and a peer are measured: side by side, in turn, each in a process of its own.

A benchmark module gives `build(case, side, dtype, quick) -> Subject`. `compare` starts one process for each
side, asks both for their outputs and compares them, then lets them run in turn, so that what else happens
on the machine falls on both. Time is the median over the repeats; peak memory is that of the process, libraries
included.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openblip.core.compute import has_fast_bfloat16
from openblip.core.memory import peak_mb
from openblip.core.runtime import machine, versions

__all__ = [
    "SLOW_BFLOAT16",
    "Subject",
    "compare",
    "dtypes_to_measure",
    "largest_difference",
    "machine_slug",
    "matmul_gflops",
    "result_of",
    "spread",
    "table",
]

SLOW_BFLOAT16 = "bfloat16: slower than float32 on this CPU; --dtype bfloat16 measures it all the same"
"""why a dtype is missing from a result"""
THREADS = 2
SIDES = ("ours", "peer")


class Subject(Protocol):
    """One side of a comparison, ready to run."""

    def outputs(self) -> dict[str, float]:
        """Numbers that must agree between the sides: losses, gradient norms."""

    def run(self) -> None:
        """What is timed."""


@dataclass
class _Worker:
    """A process that holds one subject and runs what it is sent."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, *arguments: str) -> _Worker:
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}
        command = [sys.executable, "-m", "benchmarks.harness", *arguments]
        return cls(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )

    def ask(self, what: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of a benchmark ended with code {self.process.wait()} (see above)")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def compare(
    module: str,
    case: str,
    *,
    dtype: str = "float32",
    quick: bool = False,
    repeats: int = 5,
    tolerance: float = 1e-4,
    profile: bool = False,
    together: bool = True,
) -> dict[str, Any]:
    """Measure both sides of a case; returns a row of the result.

    Args:
        tolerance: relative, of the outputs that must agree.
        together: both sides are there at once and run in turn; False holds one after the other, to save memory.
        profile: whether one more run of ours tells where its time goes (`benchmarks.profiling`).
    """
    outputs: dict[str, dict[str, Any]] = {}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    peak: dict[str, float] = {}
    profiled: dict[str, Any] = {}
    for sides in (SIDES,) if together else tuple((side,) for side in SIDES):
        workers = {side: _Worker.start(module, case, side, dtype, str(int(quick))) for side in sides}
        try:
            outputs |= {side: worker.ask("outputs") for side, worker in workers.items()}
            for worker in workers.values():
                worker.ask("run")  # the first run fills caches and is not counted
            for _ in range(repeats):
                for side, worker in workers.items():
                    runs[side].append(worker.ask("run"))
            peak |= {side: worker.ask("peak")["mb"] for side, worker in workers.items()}
            if profile and "ours" in workers:
                profiled = {"ours_profile": workers["ours"].ask("profile")}
        finally:
            for worker in workers.values():
                worker.stop()
    worst = largest_difference(*(outputs[side]["values"] for side in SIDES))
    wall = {side: [run["wall_s"] for run in runs[side]] for side in SIDES}
    ours, peer = (statistics.median(wall[side]) for side in SIDES)
    return {
        "case": case,
        "dtype": dtype,
        "ours_s": round(ours, 4),
        "peer_s": round(peer, 4),
        "ratio": round(peer / ours, 3),
        "spread": round(max(spread(times) for times in wall.values()), 3),
        "outputs_agree": worst <= tolerance,
        "largest_difference": worst,
        "ours_peak_mb": round(peak["ours"]),
        "peer_peak_mb": round(peak["peer"]),
        "ours_cpu_s": round(statistics.median(run["cpu_s"] for run in runs["ours"]), 3),
        "peer_cpu_s": round(statistics.median(run["cpu_s"] for run in runs["peer"]), 3),
        "repeats": repeats,
        **{f"{side}_tflop": answer["tflop"] for side, answer in outputs.items() if answer["tflop"]},
        **profiled,
    }


def dtypes_to_measure(names: Iterable[str], only: str | None = None) -> list[str]:
    """The dtype `only` that was asked for; else float32, and where this CPU is fast in bfloat16 the others too."""
    if only is not None:
        return [name for name in names if name == only]
    return [name for name in names if name == "float32" or has_fast_bfloat16("cpu")]


def spread(times: Sequence[float]) -> float:
    """Range of the middle half of the repeats, relative to the median."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / statistics.median(times)


def largest_difference(ours: dict[str, float], peer: dict[str, float]) -> float:
    """Largest relative difference of two sets of outputs; infinite when they do not name the same."""
    if ours.keys() != peer.keys():
        return float("inf")
    # Gradients that are zero but for rounding (a key's bias does not change a softmax) are measured
    # against the largest output.
    scale = max(abs(value) for value in ours.values())
    differences = [abs(ours[name] - peer[name]) / max(abs(peer[name]), 1e-5 * scale) for name in ours]
    return max(differences)


def matmul_gflops(dtype: str = "float32", size: int = 2048, repeats: int = 8) -> float:
    """Rate of a large linear layer with the threads that the benchmarks use, in GFLOP/s; the best of several."""
    import torch

    from openblip.models.products import linear

    torch.set_num_threads(THREADS)
    left, right = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        linear(left, right)
        best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best / 1e9, 1)


def result_of(name: str, rows: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The object that a benchmark gives: machine, versions, rows, and what else it has to say."""
    described = {**machine(), "threads": THREADS, "load": round(os.getloadavg()[0], 2)}
    return {"name": name, "machine": described, "versions": versions(), "rows": list(rows), **more}


def machine_slug() -> str:
    """A short name of this machine for file names: CPU and cores."""
    hardware = machine()
    gpus = hardware.get("gpus") or []
    words = f"{gpus[0] if gpus else hardware['cpu']} {hardware['cores']} cores".lower()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(r\)|\(tm\)|processor|cpu|@", " ", words)).strip("-")


def table(result: dict[str, Any]) -> str:
    """The result for a reader: a column for each case, in Markdown."""
    from benchmarks.tables import text_table  # not in the processes that are measured

    told, rows = result["machine"], result["rows"]
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "case"]
    cells = [[key, *(str(row.get(key, "")) for row in rows)] for key in keys]
    lines = [f"{result['name']} on {told['cpu']}, {told.get('threads', told['cores'])} threads", ""]
    lines += text_table(["case", *(str(row["case"]) for row in rows)], cells)
    more = [
        f"{key}: {value}" for key, value in result.items() if key not in ("name", "machine", "versions", "rows")
    ]
    return "\n".join([*lines, *([""] if more else []), *more])


def _serve(module: str, case: str, side: str, dtype: str, quick: str) -> None:
    """The process of one side: reads commands, one a line, and answers each with one line of JSON."""
    import torch

    from benchmarks.profiling import counted, profiled

    torch.set_num_threads(THREADS)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    subject: Subject = importlib.import_module(module).build(case, side, dtype, bool(int(quick)))
    for line in sys.stdin:
        what = line.strip()
        if what == "outputs":
            values, tflop = counted(subject.outputs)
            answer: dict[str, Any] = {"values": values, "tflop": tflop}
        elif what == "run":
            cpu, wall = time.process_time(), time.perf_counter()
            subject.run()
            answer = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        elif what == "profile":
            answer = profiled(subject.run)
        else:
            answer = {"mb": peak_mb()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
