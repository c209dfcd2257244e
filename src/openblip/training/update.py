"""What follows a step's backward pass: its norm, the watch over finite values, the optimiser, the meters.

The training loop calls it, and so does what measures a step (`benchmarks.gpu`). Nothing in it waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openblip.training.meters import FiniteGuard, Meters
from openblip.training.optim import clip_gradient, gradient_norm, hold_back

__all__ = ["update"]


def update(
    optimizer: Any,
    parameters: Sequence[nn.Parameter],
    losses: Mapping[str, Tensor],
    *,
    step: int,
    guard: FiniteGuard,
    meters: Meters,
    clip_norm: float | None = None,
    holds: bool = True,
) -> None:
    """Let the optimiser make step number `step` with the gradient of `losses`, unless something is not finite.

    Args:
        optimizer: torch's, or Accelerate's around it.
        clip_norm: of `TrainConfig`.
        holds: whether the optimiser does nothing where it is told of an infinity on the device. A loss scaler finds
            gradients that overflow itself, lowers its scale and leaves the step out: that is no failure.
    """
    norm = gradient_norm(parameters).to(meters.device)
    if clip_norm is not None:
        clip_gradient(parameters, norm, clip_norm)
    found_inf = guard.watch(step, losses, norm if holds else None)
    if holds:
        hold_back(getattr(optimizer, "optimizer", optimizer), found_inf)
    optimizer.step()
    optimizer.zero_grad()
    meters.add({"grad_norm": norm if holds else torch.where(torch.isfinite(norm), norm, 0.0)})
