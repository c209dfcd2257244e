"""Locks on the folder of a run, so that no two processes write the same files at one time.

A run of all chunks, or decisions made anew, has the folder for itself; runs of shares (`--shard`) have it together.
Whoever processes a chunk holds a lock on it besides: shares may overlap, and the processes of a run that was killed
may live a little longer than the run.

The kernel releases a lock when its process ends, however that ends. Where a file system has no locks, work goes on
without: a run that is the only one needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openblip.core.locks import locked

__all__ = ["chunk_lock", "run_lock"]

_WAIT = 10.0
"""seconds that a chunk's lock is waited for: as long as processes of a run that has just been killed may live"""


@contextmanager
def run_lock(folder: Path, file: Path, *, share: bool) -> Iterator[bool]:
    """Be the only run in a folder, or one of those that each do a share; whether the file system has such locks.

    Raises:
        UserError: another run is at work there.
    """
    refusal = f"another openblip capfilt is at work in {folder}; wait until it has ended, or choose a new folder"
    with locked(file, refusal, shared=share) as held:
        yield held


@contextmanager
def chunk_lock(file: Path, part: str) -> Iterator[None]:
    """Be the only one that processes a chunk; afterwards the file is gone.

    Args:
        part: of the source that it belongs to, for the message.

    Raises:
        UserError: another process is still at work on it after some seconds.
    """
    refusal = (
        f"another openblip capfilt is at work on the same samples of {part}; wait until it has ended, and give no "
        "two runs in one folder the same --shard"
    )
    with locked(file, refusal, wait=_WAIT) as held:
        try:
            yield
        finally:
            if held:
                with suppress(OSError):
                    file.unlink()
