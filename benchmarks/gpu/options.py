"""What makes a step fast, one thing on or off at a time: each stays only with a gain that is seen here.

Every case is a step of BLIP's pre-training that differs from "base" in what its name says. What the data loader
gives stands beside it: nothing is gained by a step that waits for images. torch.compile, whose first step takes as
long as it takes, has a stage of its own (`benchmarks.gpu.compiled`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.gpu.measure import measured
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import WORKS, Train, Work
from benchmarks.photographs import write_tars
from openblip.core.runtime import usable_cores
from openblip.data.sources import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import pretraining_transform
from openblip.models.vision import VisionEncoder
from openblip.training.config import TrainConfig

__all__ = ["OPTIONS", "Option", "measure", "measure_options"]

BATCH = 128
LOADER_SECONDS = 3.0
"""that are timed of a loader, from its first batch on: its workers' start is no part of a long training"""


@dataclass(frozen=True)
class Option:
    """One difference from "base"."""

    change: Callable[[Train], None] = lambda train: None
    """of a step that is ready to run"""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    """what the step runs in"""
    work: str = "blip"


def _optimizer(**options: Any) -> Callable[[Train], None]:
    def change(train: Train) -> None:
        groups = [{"params": group["params"]} for group in train.optimizer.param_groups]
        train.optimizer = torch.optim.AdamW(groups, lr=1e-6, weight_decay=0.05, **options)
        train.holds = False

    return change


def _channels_last(train: Train) -> None:
    for part in train.step.modules():
        if isinstance(part, VisionEncoder):
            stem: Any = part.vit.patch_embed
            stem.to(memory_format=torch.channels_last)
            stem.register_forward_pre_hook(_to_channels_last)


def _to_channels_last(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last),)


def _pageable(train: Train) -> None:
    train.batch = replace(train.batch, images=train.batch.images.clone())


def _recomputing(share: float) -> Callable[[Train], None]:
    return lambda train: train.step.gradient_checkpointing_enable(share)


@contextmanager
def _written_out() -> Iterator[None]:
    with (
        mock.patch("openblip.models.vision.uses_fused_attention", return_value=False),
        mock.patch("openblip.models.layers.uses_fused_attention", return_value=False),
    ):
        yield


OPTIONS = {
    "base": Option(),
    "AdamW not fused": Option(_optimizer(foreach=True)),
    "attention written out": Option(around=_written_out),
    "recomputing every block": Option(_recomputing(1.0)),
    "recomputing half of the blocks": Option(_recomputing(0.5)),
    "channels-last stem": Option(_channels_last),
    "images not pinned": Option(_pageable),
}
"""in order of worth"""


def measure(report: Report) -> None:
    """A row for each option with its gain over "base", and the loader's images/s on all cores."""
    measure_options(report, OPTIONS)
    with report.case("loader"):
        report.add("loader, pre-training transform", **_loader(report.pretend))


def measure_options(report: Report, options: Mapping[str, Option]) -> None:
    """A row for each, with its gain over the first one of the same work."""
    base: dict[str, float] = {}
    for name, option in options.items():
        if report.left < 10:
            report.add(name, error="no time was left")
            continue
        with report.case(name):
            found = _measure(option, WORKS[option.work](report.pretend), report)
            base.setdefault(option.work, found["seconds"])
            report.add(name, **found, times_base=round(base[option.work] / found["seconds"], 3))


def _measure(option: Option, work: Work, report: Report) -> dict[str, Any]:
    torch.manual_seed(0)
    batch, device = 2 if report.pretend else BATCH, report.device
    config = TrainConfig(precision="float32" if report.pretend else "bfloat16")
    train = Train(work.make(device), work.batch(batch), device, config)
    option.change(train)
    with option.around():
        began = time.perf_counter()
        losses = train.run()
        first = time.perf_counter() - began
        found = measured(train.run, device, images=batch, seconds=2, pretend=report.pretend)
    return {**found, "first_s": round(first, 2), "loss": round(float(losses["loss"].detach()), 4)}


def _loader(pretend: bool) -> dict[str, Any]:
    """JPEG images of 500 x 375 through the pre-training transform on all cores: what they can feed a GPU with."""
    tars, per_tar, kinds = (1, 12, 2) if pretend else (16, 256, 16)
    workers = 0 if pretend else usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        write_tars(Path(folder), tars, per_tar, kinds)
        loader = Loader(open_source(folder), pretraining_transform(224), 4 if pretend else 64, num_workers=workers)
        images, seconds, batches = 0, 0.0, iter(loader)
        next(batches)
        began = time.perf_counter()
        for batch in batches:
            images, seconds = images + len(batch.images), time.perf_counter() - began
            if seconds > LOADER_SECONDS:
                break
        loader.close()
    return {"images_per_s": round(images / seconds, 1), "images": images, "workers": workers}
