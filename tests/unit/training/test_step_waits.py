"""A step of the training loop asks the device for nothing, and what is measured of it is that step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

from benchmarks.gpu.steps import WORKS, Train
from openblip.tasks.step import TrainingStep
from openblip.training import loop
from openblip.training.config import TrainConfig
from openblip.training.meters import Meters
from tests.waits import Waits
from tests.watched_steps import STEPS, watch_steps


@pytest.fixture(autouse=True)
def _batches_are_counted_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are sent to the device, so that it is no waiting."""
    count = TrainingStep.count_step

    def count_step(self: TrainingStep[Any], batches: Sequence[Any]) -> None:
        with _disable_current_modes():
            count(self, batches)

    monkeypatch.setattr(TrainingStep, "count_step", count_step)


@pytest.mark.parametrize("name", WORKS)
def test_a_step_of_the_loop_never_waits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = Waits()
    watch_steps(name, "float32", tmp_path, monkeypatch, lambda: waits, device="cpu")
    assert not waits.counts


def test_a_step_that_waits_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Meters.add

    def adds_and_looks(self: Meters, values: dict[str, torch.Tensor]) -> None:
        add(self, values)
        next(iter(values.values())).item()

    monkeypatch.setattr(Meters, "add", adds_and_looks)
    waits = Waits()
    watch_steps("blip", "float32", tmp_path, monkeypatch, lambda: waits, device="cpu")
    assert waits.counts["_local_scalar_dense"] == 2 * (STEPS - 1)


def test_a_measured_step_is_the_loop_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses and gradient norms, step by step, of the same weights, batch and dropout."""
    step = loop._Trainer._step

    def seeded(self: Any) -> None:
        torch.manual_seed(self.progress.step)
        step(self)

    monkeypatch.setattr(loop._Trainer, "_step", seeded)
    rate: dict[str, Any] = {"learning_rate": 1e-3, "schedule": "constant"}
    watch_steps("stage1", "float32", tmp_path, monkeypatch, nullcontext, device="cpu", **rate)
    seen = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    torch.manual_seed(0)
    work = WORKS["stage1"](True)
    config = TrainConfig(precision="float32", clip_norm=1.0, **rate)
    train = Train(work.make("cpu"), work.batch(4), "cpu", config)
    for seed in range(STEPS):
        torch.manual_seed(seed)
        train.run()
    means = train.meters.means()
    assert means["grad_norm"] > 1.0  # so that it is clipped
    assert {name: seen[name] for name in means} == pytest.approx(means, rel=1e-4)
