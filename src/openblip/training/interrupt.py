"""Stopping when asked to: Ctrl-C, SIGTERM, and the exception that says where training stopped."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from openblip.core.runtime import rank

__all__ = ["Interrupted", "StopSignals", "agree"]


class Interrupted(Exception):
    """Training was asked to stop and saved itself.

    Attributes:
        step: steps done and saved.
        path: the checkpoint.
        signum: SIGINT or SIGTERM.
        exit_code: what a command should end with: 130 or 143.
    """

    def __init__(self, step: int, path: Path, signum: int = signal.SIGINT) -> None:
        super().__init__(
            f"stopped at step {step}; everything is saved in {path}; run the same command with --resume to go on"
        )
        self.step = step
        self.path = path
        self.signum = int(signum)
        self.exit_code = 128 + int(signum)


class StopSignals:
    """While entered, SIGINT and SIGTERM are noted in `received` and the step goes on to its end.

    A second SIGINT interrupts at once. Outside the main thread signals are left as they are. Processes forked
    meanwhile (loader workers) ignore Ctrl-C, so that the loop can finish its step, and obey SIGTERM.
    """

    def __init__(self) -> None:
        self.received = 0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self.received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum


def agree(signum: int, time_up: bool, save_late: bool, device: torch.device) -> tuple[int, bool, bool]:
    """What all processes do next: a signal that any received, and what the first process's clock says."""
    clock = rank() == 0
    asked = torch.tensor([signum, time_up and clock, save_late and clock], device=device)
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    received, any_time_up, any_late = asked.tolist()
    return received, bool(any_time_up), bool(any_late)
