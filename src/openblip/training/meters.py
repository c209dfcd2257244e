"""Losses between two records, and the watch for values that are not finite: kept on the device, read seldom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.runtime import gather, world_size

__all__ = ["FiniteGuard", "Meters", "NotFinite"]


class NotFinite(UserError):
    """Training met a loss or a gradient that is not finite.

    Attributes:
        step: the first such step, counted from 1.
        losses: what the module gave in it.
    """

    def __init__(self, message: str, step: int, losses: dict[str, float]) -> None:
        super().__init__(message)
        self.step = step
        self.losses = losses


class Meters:
    """Means of named scalars since the last record; adding to them never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # float64, so that sums over many steps lose no digits; Apple's GPUs have float32 only.
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.totals: dict[tuple[str, ...], Tensor] = {}
        self.counts: dict[tuple[str, ...], int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count scalars in; all processes give the same names in the same order."""
        names = tuple(values)
        vector = torch.stack([value.detach().to(self.device, self.dtype).reshape(()) for value in values.values()])
        if names in self.totals:
            self.totals[names] += vector
        else:
            self.totals[names] = vector
        self.counts[names] = self.counts.get(names, 0) + 1

    def means(self) -> dict[str, float]:
        """Means over what all processes added since the last call, and begin anew; waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        if self.totals:
            # One reduction and one transfer for all names.
            flat = torch.cat(list(self.totals.values()))
            if world_size() > 1:
                dist.all_reduce(flat)
            values = iter((flat / world_size()).tolist())
            for names, count in self.counts.items():
                for name in names:
                    sums[name] = sums.get(name, 0.0) + next(values)
                    counts[name] = counts.get(name, 0) + count
        self.totals, self.counts = {}, {}
        return {name: total / counts[name] for name, total in sums.items()}

    def state_dict(self) -> list[dict[str, Any]]:
        """This process's sums as plain values, exact."""
        return [
            {"names": list(names), "totals": total.tolist(), "count": self.counts[names]}
            for names, total in self.totals.items()
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        self.totals, self.counts = {}, {}
        for group in state:
            names = tuple(group["names"])
            self.totals[names] = torch.tensor(group["totals"], dtype=self.dtype, device=self.device)
            self.counts[names] = group["count"]


class FiniteGuard:
    """Watches each step's loss and gradient on the device and remembers the first step that is not finite.

    `watch` gives a flag for the optimiser (`found_inf`), up from that step on, so that no weight moves any more;
    `raise_if_tripped`, called where the loop waits for the device anyway and always before anything is saved,
    ends training and names the step.
    """

    def __init__(self, device: torch.device) -> None:
        self.step = torch.full((1,), -1, dtype=torch.int64, device=device)
        self.names: tuple[str, ...] = ()
        self.values = torch.zeros(0, device=device)

    def watch(self, step: int, losses: Mapping[str, Tensor], norm: Tensor | None) -> Tensor:
        """Look at step number `step`; `norm` None leaves the gradient to a loss scaler.

        Returns:
            float32 scalar on the device: 1 from the first bad step on, else 0.
        """
        names = tuple(losses)
        vector = torch.stack([value.detach().float().reshape(()) for value in losses.values()])
        if names != self.names:
            # A module that names its losses anew keeps the old values only if they were already bad.
            if self.names and bool(self.step >= 0):
                return torch.ones((), device=self.step.device)
            self.names, self.values = names, torch.zeros_like(vector)
        bad = ~torch.isfinite(losses["loss"].detach())
        if norm is not None:
            bad = bad | ~torch.isfinite(norm)
        first = bad.reshape(1) & (self.step < 0)
        self.values = torch.where(first, vector, self.values)
        self.step = torch.where(first, step, self.step)
        return (self.step >= 0).float().reshape(())

    def raise_if_tripped(self, last_good: str) -> None:
        """Raise on every process if any met a bad step; `last_good` says what to continue from."""
        steps = gather(self.step)
        bad_steps = [value for value in steps.tolist() if value >= 0]
        if not bad_steps:
            return
        values = gather(self.values[None])[steps.tolist().index(min(bad_steps))].tolist()
        losses = dict(zip(self.names, values, strict=True))
        message = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        raise NotFinite(
            f"step {min(bad_steps)} gave a loss or gradient that is not finite ({message}) and was not applied; "
            f"{last_good}; lower learning_rate, lengthen warmup_steps, set clip_norm, or train in float32",
            min(bad_steps),
            losses,
        )
