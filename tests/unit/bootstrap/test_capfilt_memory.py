"""Memory does not grow with the number of samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.capfilt_memory import EACH, LIMIT, compare

TIMES = 4
"""how many times the samples; `benchmarks compare capfilt-memory` takes 100"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Many times the samples take at most a tenth more."""
    few, many = compare(tmp_path, TIMES)
    assert (few["samples"], many["samples"]) == (EACH, TIMES * EACH)
    assert (few["images_kept"], many["images_kept"]) == (EACH // 50, TIMES * EACH // 50)
    assert many["peak_mb"] <= LIMIT * few["peak_mb"], f"{few} {many}"
    assert many["outputs_agree"]
