"""The rest of the time: a training, on carried data where there are some, else in the scene world at 224 px.

`OPENBLIP_GPU_DATA` names a folder with train.jsonl, val.jsonl and the images that they name.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import Report
from openblip.core.runtime import usable_cores
from openblip.recipes.small import small_pretrain
from openblip.tasks.config import RunConfig
from openblip.tasks.training import run_training
from openblip.training.config import within

__all__ = ["DATA", "measure"]

DATA = "OPENBLIP_GPU_DATA"
RESERVE = 20.0
"""seconds for opening the data and the last evaluation"""


def measure(report: Report) -> None:
    """One row for each record of the run: losses and images/s while it trains, metrics when it is evaluated."""
    config = configuration(os.environ.get(DATA), pretend=report.pretend)
    seconds = None if report.pretend else report.left - RESERVE
    config = replace(config, train=within(config.train, seconds))

    def keep(record: dict[str, Any]) -> None:
        case = f"{record['split']}, step {record['step']}"
        report.add(case, **{name: value for name, value in record.items() if name not in ("split", "step")})

    with tempfile.TemporaryDirectory() as place:
        ended = run_training(config, Path(place) / "run", show=False, on_record=keep)
    report.add(
        "ended",
        data=config.sources[0].path,
        steps=ended.steps,
        stopped=ended.stopped,
        images_per_s=round(ended.images_per_second, 1),
        evaluation=ended.evaluation,
    )


def configuration(folder: str | None, *, pretend: bool) -> RunConfig:
    """The run: of the carried data, or of drawn scenes."""
    size = 64 if pretend else 224
    if folder is None:
        data, validation = f"world:train?size={size}", f"world:val?size={size}"
    else:
        data, validation = f"{folder}/train.jsonl", f"{folder}/val.jsonl"
    config = small_pretrain(
        (data,), model="nano" if pretend else "micro", validation=(validation,), steps=2 if pretend else 3000
    )
    train = replace(config.train, trackers=(), log_every=1 if pretend else 50, checkpoint_every=0)
    if pretend:
        train = replace(train, warmup_steps=0, device="cpu")
    workers = 0 if pretend else max(1, usable_cores() - 2)
    return replace(
        config,
        image_size=size,
        transform=replace(config.transform, image_size=size),
        batch_size=4 if pretend else 128,
        validation_samples=4 if pretend else config.validation_samples,
        num_workers=workers,
        train=train,
    )
