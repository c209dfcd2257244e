"""CapFilt by its stages beside a plain loop over transformers; features of the frozen tower as they are cached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks import capfilt
from benchmarks.blip2_stage1 import drawn_model
from benchmarks.gpu.aims import TIMES
from benchmarks.gpu.caption import half
from benchmarks.gpu.measure import forget, measured
from benchmarks.gpu.predict import predicted
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import qformer_sizes, tower_sizes
from openblip.models.blip2 import Blip2Config

__all__ = ["measure"]

IMAGES, LOOP_IMAGES = 64, 8
"""photographs of ours, and of the loop, which takes one at a time"""
BATCHES = (128, 32)
"""of images whose features are cached"""


def measure(report: Report) -> None:
    """Rows for CapFilt with one caption for each image, then for ViT-g's features."""
    torch.set_grad_enabled(False)
    with report.case("CapFilt"):
        _capfilt(report)
    with report.case("features"):
        _features(report)


def _capfilt(report: Report) -> None:
    ours_count, loop_count = (2, 1) if report.pretend else (IMAGES, LOOP_IMAGES)
    with capfilt.prepared(report.pretend, ours_count):
        place, device = Path(os.environ[capfilt.PLACE]), report.device
        ours = capfilt.Ours(place, 1, ours_count, half(report), device)
        timing: dict[str, Any] = {"seconds": 4, "warmup": 1, "pretend": report.pretend}
        found = measured(ours.run, device, images=ours_count, **timing)
        # Warm-up and repeats alike, so shares of the stages and no absolute times.
        stages = {name: round(value, 4) for name, value in ours.pipeline.seconds.items()}
        report.add("CapFilt, 1 caption: ours", **found, stages_s=stages)
        mine = {Path(name).stem: value for name, value in ours.outputs().items()}
        del ours  # so that the peak of memory beside it is the loop's own
        forget(device)
        loop = capfilt.Loop(place, 1, loop_count, half(report), device)
        theirs = {Path(name).stem: value for name, value in loop.outputs().items()}
        worst = max(abs(mine[name] - value) for name, value in theirs.items())
        report.add("CapFilt: ITM probabilities", largest_difference=worst, compared=len(theirs))
        row = measured(loop.run, device, images=loop_count, **timing)
        report.add("CapFilt, 1 caption: loop over transformers", **row)
        report.add("CapFilt: times faster", ratio=round(found["images_per_s"] / row["images_per_s"], 2), aim=TIMES)


def _features(report: Report) -> None:
    """As `cache_features` computes them: uint8 to the device, normalised there, features back to the host."""
    small, device = report.pretend, report.device
    config = Blip2Config(vision=tower_sizes(small), qformer=qformer_sizes(small))
    tower: Any = drawn_model(config, whole=True, device=device).vision
    for batch in (2,) if small else BATCHES:
        pixels = torch.randint(0, 256, (batch, 3, *tower.pixels), dtype=torch.uint8)

        def compute(pixels: torch.Tensor = pixels) -> torch.Tensor:
            return tower(tower.normalize(pixels.to(device)))

        def cache(compute: Any = compute) -> torch.Tensor:
            found: torch.Tensor = compute().cpu()
            return found

        for name, run in (("computed", compute), ("copied to the host too", cache)):
            case = f"features of the frozen tower, batch {batch}, {name}"
            with report.case(case):
                before = predicted(f"features of the frozen tower, batch {batch}")
                tflop = None if before is None else before["tflop"]
                row = measured(run, device, images=batch, seconds=2, tflop=tflop, pretend=small)
                report.add(case, **row, predicted=before)
