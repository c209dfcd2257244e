"""Stage 1: `pytest -m gpu` over the files that have tests that need a GPU; to collect all files would take long."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.report import Report

__all__ = ["marked_files", "measure"]

REPO = Path(__file__).resolve().parents[2]


def marked_files(folder: Path = REPO / "tests") -> list[str]:
    """Files with a test that is marked as one that needs a GPU."""
    found = (path for path in sorted(folder.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text("utf-8"))
    return [path.relative_to(folder.parent).as_posix() for path in found]


def measure(report: Report) -> None:
    """One row: how many passed, failed and were skipped, and the names of those that failed."""
    files = marked_files()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *files, "-p", "no:cacheprovider", "-rfEs"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=max(1.0, report.left - 2))
    counts = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)
    }
    lines = [line[:300] for line in done.stdout.splitlines() if re.match(r"(FAILED|ERROR|SKIPPED)", line)]
    report.add("pytest -m gpu", exit_code=done.returncode, **counts, files=files, lines=lines)
    if done.returncode not in (0, 5):  # 5: no test was collected
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise RuntimeError(f"pytest ended with {done.returncode}: {counts}")
