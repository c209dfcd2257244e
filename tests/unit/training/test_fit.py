"""Training that keeps a time, its speed over several sessions, and a monitored metric that is not there."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_loop import run
from torch import nn
from training_toy import ToyLoader, evaluate, losses

from openblip.core.errors import UserError
from openblip.core.places import run_checkpoints
from openblip.training import Interrupted
from openblip.training import state as states


class Clock:
    """Training whose steps take exactly `step` seconds and evaluations `evaluation` seconds, on any CPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: float, evaluation: float = 0.0) -> None:
        self.now, self.step, self.evaluation = 0.0, step, evaluation
        for module in ("loop", "feed"):
            monkeypatch.setattr(f"openblip.training.{module}.time.perf_counter", lambda: self.now)

    def loader(self) -> ToyLoader:
        """A loader whose batches take the time of a step."""
        clock = self

        class Slow(ToyLoader):
            def __iter__(self) -> Iterator[Any]:
                for batch in super().__iter__():
                    clock.now += clock.step
                    yield batch

        return Slow()

    def evaluate(self, module: nn.Module, step: int) -> dict[str, float]:
        """An evaluation that takes time."""
        self.now += self.evaluation
        return evaluate(module, step)


@pytest.mark.parametrize("evaluation", [0.0, 30.0])
@pytest.mark.parametrize("guess", [2, 5, 19, 25, 60, 1000])
def test_training_is_fitted_to_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guess: int, evaluation: float
) -> None:
    """However wrong the planned number of steps is, training ends when the time does, its schedule complete."""
    clock = Clock(monkeypatch, step=2.0, evaluation=evaluation)
    settings = {"max_steps": guess, "fit_minutes": 5.0, "evaluate_every_epochs": 0, "evaluate_every_steps": 40}
    result = run(
        tmp_path, loader=clock.loader(), evaluate=clock.evaluate, log_every=10, schedule="linear",
        min_learning_rate=0.0, checkpoint_minutes=0.0, **settings,
    )  # fmt: skip
    assert result.stopped == "finished"
    assert clock.now == pytest.approx(300, abs=35 if evaluation else 4)
    rates = [record["learning_rate"] for record in losses(tmp_path)]
    assert rates[-1] == pytest.approx(1e-2 / result.steps, rel=1e-6), "the last step of a linear schedule"


def test_a_fitted_number_of_steps_is_kept_when_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_steps": 500, "fit_minutes": 2.0, "evaluate_every_epochs": 0, "checkpoint_every": 25}
    clock = Clock(monkeypatch, step=2.0)
    whole = run(tmp_path / "whole", loader=clock.loader(), checkpoint_minutes=0.0, log_every=5, **settings)
    assert 55 <= whole.steps <= 61

    class Stop(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 30:
            raise Stop

    clock.now = 0.0
    options = {"checkpoint_minutes": 0.0, "log_every": 5, **settings}
    with pytest.raises(Stop):
        run(tmp_path / "cut", loader=clock.loader(), on_record=stop, **options)
    clock.step = 40.0  # the machine has become slower: the number of steps stands
    resumed = run(tmp_path / "cut", loader=clock.loader(), resume=True, **options)
    assert resumed.steps == whole.steps
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


FITTED = {"max_steps": 10, "evaluate_every_epochs": 0, "checkpoint_minutes": 0.0, "log_every": 5}


def test_a_run_that_was_fitted_may_be_given_another_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another time is fitted from the speed that is known; without a time the steps of the configuration count."""
    clock = Clock(monkeypatch, step=2.0, evaluation=10.0)
    options = {"loader": clock.loader(), "evaluate": clock.evaluate, **FITTED}
    first = run(tmp_path, fit_minutes=2.0, **options)
    spent, clock.now = clock.now, 0.0
    assert spent == pytest.approx(130, abs=3), "what an evaluation takes is not known before it"
    longer = run(tmp_path, fit_minutes=5.0, resume=True, **options)
    assert spent + clock.now == pytest.approx(300, abs=3)
    more = run(tmp_path, resume=True, **{**options, "max_steps": longer.steps + 7})
    assert more.steps == longer.steps + 7 > first.steps
    shorter = run(tmp_path, fit_minutes=1.0, resume=True, **options)
    assert shorter.steps == more.steps + 1


def test_the_steps_since_the_last_record_count_with_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, step=2.0)
    settings = {"max_steps": 1000, "evaluate_every_epochs": 0, "checkpoint_minutes": 0.0, "log_every": 100}
    options = {"loader": clock.loader(), "fit_minutes": 10.0, "evaluate_every_steps": 95, **settings}

    def interrupted(module: nn.Module, step: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(module, step)

    with pytest.raises(Interrupted):
        run(tmp_path, evaluate=interrupted, **options)
    progress = states.read_state(run_checkpoints(tmp_path)[-1])["progress"]
    assert (progress["step"], progress["train_seconds"]) == (95, pytest.approx(190))
    result = run(tmp_path, evaluate=evaluate, resume=True, **options)
    assert clock.now == pytest.approx(600, abs=4)
    assert result.images_per_second == pytest.approx(8 / 2.0, rel=0.02)


def test_a_metric_that_is_not_there_costs_no_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'monitor names "heldout".*did you mean "held_out"'):
        run(tmp_path, evaluate=evaluate, monitor="heldout", epochs=1)
    assert [path.name for path in run_checkpoints(tmp_path)] == ["step-00000006"]
    result = run(tmp_path, evaluate=evaluate, monitor="held_out", epochs=1, resume=True)
    value = losses(tmp_path, "eval")[0]["held_out"]
    assert result.best == {"step": 6, "name": "held_out", "mode": "max", "value": value}
    assert len(losses(tmp_path)) == 6
    assert len(losses(tmp_path, "eval")) == 1
    assert (tmp_path / "checkpoints" / "best").is_file()


@pytest.mark.parametrize("changes", [{"monitor": "loss", "monitor_mode": "min"}, {"monitor_mode": "min"}])
def test_another_metric_has_no_best_evaluation_yet(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Its values are not those that the first part of the run was measured by."""
    scores = iter([{"score": 1.0, "loss": 5.0}, {"score": 2.0, "loss": 3.0}, {"score": 3.0, "loss": 2.5}])

    def measure(module: nn.Module, step: int) -> dict[str, float]:
        return next(scores)

    run(tmp_path, evaluate=measure, monitor="score", epochs=1)
    result = run(tmp_path, evaluate=measure, epochs=3, resume=True, **({"monitor": "score"} | changes))
    step, value = (18, 2.5) if "monitor" in changes else (12, 2.0)
    assert result.best == {"step": step, "name": changes.get("monitor", "score"), "mode": "min", "value": value}
    assert (tmp_path / "checkpoints" / "best").read_text().strip() == f"step-{step:08d}"
