"""What is due when: the next evaluation, the best one so far, and the last step of a training that keeps a time."""

from __future__ import annotations

import math

from openblip.core.errors import UserError, nearest
from openblip.training.config import FIT_AFTER, TrainConfig
from openblip.training.state import Progress

__all__ = ["evaluation_is_due", "fit_is_due", "fitted_steps", "note_best", "steps_on_resuming"]


def evaluation_is_due(config: TrainConfig, progress: Progress) -> bool:
    """Whether the model is to be evaluated after the step that has just been done."""
    # After a step the batch count is 0 only where the step was an epoch's last.
    at_epoch = progress.batch == 0 and bool(config.evaluate_every_epochs)
    at_epoch = at_epoch and progress.epoch % config.evaluate_every_epochs == 0
    return at_epoch or (bool(config.evaluate_every_steps) and progress.step % config.evaluate_every_steps == 0)


def note_best(config: TrainConfig, progress: Progress, metrics: dict[str, float]) -> bool:
    """Make an evaluation `progress.best` if it is better by the metric that `config.monitor` names; whether it is.

    A run that resumes with another metric, or another mode, has no best evaluation yet.

    Raises:
        UserError: the evaluation does not give that metric.
    """
    name, mode, best = config.monitor, config.monitor_mode, progress.best
    if name is None:
        return False
    if name not in metrics:
        raise UserError(f'monitor names "{name}", which the evaluation does not give{nearest(name, metrics)}')
    value = metrics[name]
    # A checkpoint of an older version does not say the mode.
    if best is not None and (best["name"], best.get("mode", mode)) != (name, mode):
        best = None
    better = best is None or (value > best["value"] if mode == "max" else value < best["value"])
    if better and math.isfinite(value):
        progress.best = {"step": progress.step, "name": name, "mode": mode, "value": value}
        return True
    return False


def fit_is_due(step: int, planned: int) -> bool:
    """Whether `fit_minutes` sets the number of steps after this step: `FIT_AFTER`, or each half of a shorter plan.

    A plan of few steps may be wrong too, and would be over before its speed is known.

    Args:
        planned: steps in all, before any fit.
    """
    return step <= FIT_AFTER and step % min(FIT_AFTER, max(1, planned // 2)) == 0


def steps_on_resuming(config: TrainConfig, progress: Progress, planned: int) -> int:
    """Steps in all of a run that goes on: those that were fitted where `fit_minutes` is as it was.

    A new time is fitted anew, unless that is due later; without one the configuration's length counts again.

    Args:
        planned: as of `fit_is_due`.
    """
    fits = config.fit_minutes is not None
    if fits and progress.total_steps and progress.fitted_minutes in (None, config.fit_minutes):
        return progress.total_steps  # a checkpoint of an older version does not say for which time
    first = not progress.total_steps and progress.step < min(FIT_AFTER, planned)
    progress.total_steps = 0
    steps = None
    if fits and not first:
        steps = fitted_steps(config, progress, spent=progress.seconds)
    return steps or planned


def fitted_steps(config: TrainConfig, progress: Progress, *, spent: float) -> int | None:
    """Steps in all with which training and its evaluations fill `config.fit_minutes`; None before a speed is known.

    They are noted in `progress`.

    Args:
        spent: seconds of the run so far, with everything.
    """
    assert config.fit_minutes is not None
    if not progress.step or not progress.train_seconds:
        return None
    step = progress.train_seconds / progress.step
    evaluation = progress.evaluation_seconds  # one comes at the end
    if config.evaluate_every_steps:
        # Each step carries its part of the evaluations between steps.
        step += evaluation / config.evaluate_every_steps
    left = 60 * config.fit_minutes - spent - evaluation
    progress.total_steps = progress.step + max(1, round(left / step))
    progress.fitted_minutes = config.fit_minutes
    return progress.total_steps
