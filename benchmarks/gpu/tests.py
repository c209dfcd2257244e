"""Stage 1: the tests that need a GPU (`pytest -m gpu tests/gpu`)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.report import Report

__all__ = ["measure"]

REPO = Path(__file__).resolve().parents[2]


def measure(report: Report) -> None:
    """One row: how many passed, failed and were skipped, and the names of those that failed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider", "-rfEs"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=max(1.0, report.left - 2))
    counts = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)
    }
    lines = [line[:300] for line in done.stdout.splitlines() if re.match(r"(FAILED|ERROR|SKIPPED)", line)]
    report.add("pytest -m gpu", exit_code=done.returncode, **counts, lines=lines)
    if done.returncode not in (0, 5):  # 5: no test was collected
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise RuntimeError(f"pytest ended with {done.returncode}: {counts}")
