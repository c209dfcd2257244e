"""Caching features of a frozen tower: images a second beside the tower's bare forward pass, and memory.

Ours is the whole of `openblip cache-features`: photographs read from tars, decoded and resized, the tower, and the
shards written. The peer is the tower alone on batches of the same size that lie in memory. `ratio` is what caching
keeps of the bare throughput. The tower is a ViT-S/14 with drawn weights (the sizes of DINOv2's) at 224 pixels.

Memory is measured in a process of its own, workers included (proportional set size: shared pages count once).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import THREADS, Subject, compare, result_of
from benchmarks.photographs import write_tars
from openblip.core.memory import keep_freed_memory
from openblip.core.text import read_text
from openblip.data.sources import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.models.configs import TowerConfig, VisionConfig
from openblip.models.tower import FrozenTower, make_tower
from openblip.tasks.feature_files import open_shard, shard_files
from openblip.tasks.features import cache_features

BATCH = 32
LEAST = 0.8
"""of the bare throughput that caching must reach"""
MOST_MB = 1500
"""that caching may take beyond the model"""
CASES = {"a thread decodes": 0, "a process decodes": 1}
FOLDER = "OPENBLIP_BENCHMARK_TARS"
"""environment variable that tells the processes of both sides where the tars are"""


def run(quick: bool) -> dict[str, Any]:
    """Measure 256 images, or 32 with a small tower."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_tars(Path(folder), 1, 32 if quick else 256, 16 if quick else 128)
        os.environ[FOLDER] = folder
        try:
            for case in CASES:
                # Features of other batches are multiplied by other kernels and kept in float32.
                row = compare("benchmarks.features", case, quick=quick, repeats=1 if quick else 3, tolerance=1e-3)
                told = subprocess.run(
                    [sys.executable, "-m", "benchmarks.features", case, str(int(quick))],
                    env={**os.environ, "OMP_NUM_THREADS": str(THREADS)},
                    stdout=subprocess.PIPE,
                    check=True,
                )
                rows.append(row | json.loads(told.stdout))
        finally:
            del os.environ[FOLDER]
    return result_of("features", rows, batch_size=BATCH, least_ratio=LEAST, most_beyond_model_mb=MOST_MB)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side of a case, ready to run."""
    keep_freed_memory()  # on both sides, as the command line does
    tower, folder = _tower(quick), Path(os.environ[FOLDER])
    return Caching(tower, folder, CASES[case]) if side == "ours" else Bare(tower, folder)


def _tower(quick: bool) -> FrozenTower:
    torch.manual_seed(0)
    if quick:
        sizes = VisionConfig(width=32, depth=1, num_heads=2, patch_size=16, image_size=224)
        return make_tower(TowerConfig(source="own", own=sizes, drop_layers=0))
    return make_tower(TowerConfig(source="timm:vit_small_patch14_dinov2.lvd142m", image_size=224), pretrained=False)


def _numbers(features: Tensor) -> dict[str, float]:
    return {"mean_square": features.square().mean().item(), "mean_size": features.abs().mean().item()}


class Caching:
    """`cache_features` into a new folder each time."""

    def __init__(self, tower: FrozenTower, folder: Path, workers: int) -> None:
        self._tower, self._folder, self._workers = tower, folder, workers
        self._source = open_source(str(folder))
        self._out = folder / f"features-{os.getpid()}"

    def outputs(self) -> dict[str, float]:
        """Of all features, as they are read from disk."""
        self.run()
        shards = [open_shard(file) for file in shard_files(self._out)]
        return _numbers(torch.cat([shard[:, 0] for shard in shards]))  # type: ignore[index]

    def run(self) -> None:
        """Cache all images."""
        shutil.rmtree(self._out, ignore_errors=True)
        cache_features([self._source], self._tower, self._out, batch_size=BATCH, num_workers=self._workers)


class Bare:
    """The tower on batches in memory."""

    def __init__(self, tower: FrozenTower, folder: Path) -> None:
        self._tower = tower
        source, transform = open_source(str(folder)), evaluation_transform(tower.pixels)
        loader = Loader(source, transform, BATCH, shuffle=False, drop_last=False, text_mode="none")
        self._batches = [batch.images for batch in loader]

    def outputs(self) -> dict[str, float]:
        """Of all features."""
        return _numbers(torch.cat([self._forward(images) for images in self._batches]))

    def run(self) -> None:
        """Compute them."""
        for images in self._batches:
            self._forward(images)

    def _forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self._tower(self._tower.normalize(images))


def _held_mb() -> float:
    """Of this process and its children, shared pages counted once; 0 for a child that has just ended."""
    mine = os.getpid()
    children = read_text(f"/proc/{mine}/task/{mine}/children").split()
    total = 0
    for process in (mine, *children):
        try:
            lines = read_text(f"/proc/{process}/smaps_rollup").splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**10


def measure_memory(case: str, quick: bool) -> dict[str, Any]:
    """Most memory beyond the model's while images are cached, sampled five times a second (Linux)."""
    torch.set_num_threads(THREADS)
    keep_freed_memory()
    subject = Caching(_tower(quick), Path(os.environ[FOLDER]), CASES[case])
    before, most, stop = _held_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.2):
            most = max(most, _held_mb())

    watching = threading.Thread(target=watch)
    watching.start()
    subject.run()
    stop.set()
    watching.join()
    return {"ours_beyond_model_mb": round(max(most, _held_mb()) - before)}


if __name__ == "__main__":
    print(json.dumps(measure_memory(sys.argv[1], bool(int(sys.argv[2])))))
