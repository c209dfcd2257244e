"""A training of a few steps in which something watches every step of the loop but the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.steps import WORKS
from openblip.training import loop
from openblip.training.config import TrainConfig
from openblip.training.state import TrainResult

STEPS = 3


class Batches:
    """A loader of one batch, again and again, as the real one gives it: the images pinned where there is a GPU."""

    epoch = 0

    def __init__(self, batch: Any) -> None:
        self.batch = replace(batch, images=batch.images.pin_memory()) if torch.cuda.is_available() else batch

    def __len__(self) -> int:
        return STEPS + 1

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * len(self))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def watch_steps(
    name: str,
    precision: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    watching: Callable[[], AbstractContextManager[Any]],
    **options: Any,
) -> TrainResult:
    """Train an objective of `benchmarks.gpu.steps` in its tiny size; the first step makes moments."""
    step = loop._Trainer._step
    watched = []

    def watched_step(self: Any) -> None:
        if self.progress.step == 0:
            step(self)
            return
        with watching():
            step(self)
        watched.append(self.progress.step)

    monkeypatch.setattr(loop._Trainer, "_step", watched_step)
    work = WORKS[name](True)
    config = TrainConfig(
        max_steps=STEPS, precision=precision, clip_norm=1.0, warmup_steps=0, log_every=100, checkpoint_every=0,
        trackers=(), **options,
    )  # fmt: skip
    torch.manual_seed(0)
    result = loop.train(config, work.make("cpu"), Batches(work.batch(4)), folder / "run", show=False)
    assert watched == [2, 3]
    return result
