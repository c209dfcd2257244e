"""The benchmark of an index: its neighbours are the known ones, and its figures are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import search


@pytest.mark.parametrize("queries", [1, 32])
def test_the_nearest_are_the_known_ones(tmp_path: Path, queries: int) -> None:
    count = 9000 if queries == 1 else 1600
    written = search.write(tmp_path, count, queries)
    nearest = np.load(tmp_path / "nearest.npy")
    for own, known in zip(nearest, search.known(count), strict=True):
        assert len(own) == search.TOP
        assert set(own.tolist()) <= set(known.tolist())
    assert written["vectors_mb"] == round(count * queries * search.WIDTH * 2 / 1e6, 1)
    told = search.query(tmp_path, count, queries)
    # Ten of thirty neighbours, whose cosines in float16 differ by less than 1e-3 from those in float32.
    assert told["recall_at_10"] >= search.LEAST_RECALL
    assert told["outputs_agree"]
    assert 0 < told["query_p50_ms"] <= told["query_p99_ms"]
