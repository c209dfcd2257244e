"""Processes started as a launcher starts them, with its variables; forked from one that has imported torch."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from training_toy import losses

__all__ = ["begin", "close", "end", "run"]

CONTEXT = multiprocessing.get_context("forkserver")
Main = Callable[[list[str], dict[str, str]], None]


def begin(main: Main, out_dir: Path, *arguments: str, processes: int = 2) -> list[BaseProcess]:
    """Start `main([out_dir, *arguments])` in each of the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = ([str(out_dir), *arguments], environment if processes > 1 else {})
        process = CONTEXT.Process(target=main, args=command)
        process.start()
        started.append(process)
    return started


def end(started: list[BaseProcess], seconds: float = 400) -> list[int | None]:
    """Wait for the processes and return their exit codes."""
    for process in started:
        process.join(seconds)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def run(main: Main, out_dir: Path, *arguments: str, processes: int = 2) -> None:
    """Start, wait, and hold all processes to a good end."""
    assert end(begin(main, out_dir, *arguments, processes=processes)) == [0] * processes


def close(one: Path, two: Path, *, rtol: float) -> None:
    """Hold every number in the records of two runs to each other.

    Two processes add what one sums at once, in another order: a step rounds otherwise, and the next begins there.
    """
    ours, theirs = losses(one), losses(two)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.pop("split") == b.pop("split")
        assert a == pytest.approx(b, rel=rtol, abs=1e-7)
