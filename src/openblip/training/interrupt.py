"""How training stops: what it raises when a signal came, and how processes agree on it."""

from __future__ import annotations

import signal
from pathlib import Path

import torch
import torch.distributed as dist

from openblip.core.interrupt import RESUME, Stopped
from openblip.core.runtime import rank

__all__ = ["Interrupted", "agree"]


class Interrupted(Stopped):
    """Training was requested to stop and saved itself.

    Attributes:
        step: steps done and saved.
        path: the checkpoint.
    """

    def __init__(self, step: int, path: Path, signum: int = signal.SIGINT) -> None:
        super().__init__(f"stopped at step {step}; everything is saved in {path}", signum, again=RESUME)
        self.step = step
        self.path = path


def agree(signum: int, time_up: bool, save_late: bool, device: torch.device) -> tuple[int, bool, bool]:
    """What all processes do next: a signal that any received, and what the first process's clock says."""
    clock = rank() == 0
    asked = torch.tensor([signum, time_up and clock, save_late and clock], device=device)
    # The maximum of each: a signal number above 0, or a flag that one process raised.
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    received, any_time_up, any_late = asked.tolist()
    return received, bool(any_time_up), bool(any_late)
