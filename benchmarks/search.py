"""Search of an image index over made-up vectors with known neighbours, without a model.

A query is a drawn vector; thirty vectors of the index are that one with noise, the others are drawn on their own.
One process writes vectors and rows, another opens the index and searches it: a query reads all vectors and looks
up the rows of its hits. Recall@10 is measured against the ten nearest in float32, before they were stored.

`python -m benchmarks compare search` takes a million vectors of BLIP, and of BLIP-2 (`--quick`: 20,000).
`python -m benchmarks.search IMAGES [QUERIES]` takes any number; QUERIES is the number of vectors of an image.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.harness import THREADS, result_of
from openblip.core.memory import peak_mb
from openblip.index.catalog import Catalog, Record
from openblip.index.segments import Segments
from openblip.index.sqlite import SqliteDatabase
from openblip.index.vectors import Term

WIDTH = 256
SEARCHES, NEIGHBOURS, TOP = 50, 30, 10
LEAST_RECALL = 0.97
_BATCH = 8192
_NOISE = 0.6
"""beside a vector of length 1: cosines of about 0.86, those of vectors drawn on their own are about 0"""


def run(quick: bool) -> dict[str, Any]:
    """A million images of BLIP, and as many vectors of BLIP-2; `quick` takes 20,000."""
    total = 20_000 if quick else 1_000_000
    return result_of("search", [sized(total, 1), sized(total // 32, 32)], least_recall=LEAST_RECALL)


def sized(count: int, queries: int) -> dict[str, Any]:
    """Write and search an index of so many images with `queries` vectors each, in two processes."""
    row: dict[str, Any] = {"case": f"{count:,} images, {queries} x {WIDTH}"}
    with tempfile.TemporaryDirectory() as folder:
        for stage in ("write", "query"):
            told = subprocess.run(
                [sys.executable, "-m", "benchmarks.search", stage, folder, str(count), str(queries)],
                env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
                stdout=subprocess.PIPE,
                check=True,
            )
            row |= json.loads(told.stdout)
    return row


def targets() -> Tensor:
    """What is searched for, [SEARCHES, E]."""
    return normalize(torch.randn(SEARCHES, WIDTH, generator=torch.Generator().manual_seed(10**9)), dim=-1)


def known(count: int) -> Tensor:
    """The images near each target, int64 [SEARCHES, NEIGHBOURS]."""
    return torch.linspace(0, count - 1, SEARCHES * NEIGHBOURS).long().view(NEIGHBOURS, SEARCHES).T


def write(folder: Path, count: int, queries: int) -> dict[str, Any]:
    """Write the index, and the nearest of each target in float32 beside it."""
    wanted, near = targets(), torch.full((count,), -1)
    near[known(count)] = torch.arange(SEARCHES)[:, None]
    catalog = Catalog(SqliteDatabase(folder, create=True), {"shape": [queries, WIDTH]})
    store, place = Segments(folder / "vectors", (queries, WIDTH)), catalog.place("made up")
    generator = torch.Generator().manual_seed(0)
    best, numbers = torch.empty(SEARCHES, 0), torch.empty(SEARCHES, 0, dtype=torch.int64)
    took = 0.0
    for first in range(0, count, _BATCH):
        own = torch.arange(first, min(first + _BATCH, count))
        vectors = normalize(torch.randn(len(own), queries, WIDTH, generator=generator), dim=-1)
        chosen = near[own] >= 0
        vectors[chosen, 0] = normalize(wanted[near[own][chosen]] + _NOISE * vectors[chosen, 0], dim=-1)
        began = time.perf_counter()
        store.append(vectors, first)
        with catalog.database.transaction():
            for number in own.tolist():
                catalog.put(_record(number, place))
        took += time.perf_counter() - began
        best = torch.cat((best, (vectors @ wanted.T).amax(1).T), dim=1)
        numbers = torch.cat((numbers, own.expand(SEARCHES, -1)), dim=1)
        top = best.topk(min(TOP, best.shape[1])).indices
        best, numbers = best.gather(1, top), numbers.gather(1, top)
    catalog.close()
    np.save(folder / "nearest.npy", numbers.numpy())
    sizes = {path: path.stat().st_size / 1e6 for path in folder.rglob("*") if path.is_file()}
    return {
        "build_s": round(took, 2),
        "images_per_s": round(count / took),
        "vectors_mb": round(sum(size for path, size in sizes.items() if path.suffix == ".float16"), 1),
        "catalog_mb": round(sum(size for path, size in sizes.items() if path.suffix == ".sqlite"), 1),
    }


def _record(number: int, place: int) -> Record:
    name = f"/made/up/{number:09d}.jpg"
    return Record(
        path=name,
        place=place,
        file=name,
        start=None,
        length=None,
        size=100_000,
        modified=1,
        hash=f"{number:016x}",
        look=number,
        vector=number,
        date="2024-05-01 12:00:00",
    )


def query(folder: Path, count: int, queries: int) -> dict[str, Any]:
    """Open the index and search it once for each target."""
    before, began = peak_mb(), time.perf_counter()
    catalog, store = Catalog(SqliteDatabase(folder)), Segments(folder / "vectors", (queries, WIDTH))
    there = np.zeros(catalog.num_vectors, bool)
    there[catalog.vectors()] = True  # as `SegmentStore` does, once for all searches until something changes
    assert there.all(), "every image has its vector"
    opened = time.perf_counter() - began
    nearest, times, hits = np.load(folder / "nearest.npy"), [], 0
    wanted = targets()
    store.search([Term(wanted[0])], TOP, count)  # maps the files
    for target, own in zip(wanted, nearest, strict=True):
        began = time.perf_counter()
        found = catalog.by_vectors(store.search([Term(target)], TOP, count)[1].tolist())
        times.append(1e3 * (time.perf_counter() - began))
        hits += len(found.keys() & set(own.tolist()))
    recall = hits / nearest.size
    percent = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "open_s": round(opened, 3),
        "query_p50_ms": round(percent[49], 2),
        "query_p99_ms": round(percent[98], 2),
        "recall_at_10": round(recall, 4),
        "outputs_agree": recall >= LEAST_RECALL,
        # Mapped pages count, though the system takes them back when it needs memory.
        "memory_mb": round(peak_mb() - before),
    }


if __name__ == "__main__":
    if sys.argv[1] in ("write", "query"):
        torch.set_num_threads(THREADS)
        stage = write if sys.argv[1] == "write" else query
        print(json.dumps(stage(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(sized(int(sys.argv[1]), int((sys.argv[2:] or ["1"])[0])), indent=2))
