"""Locks on the folder of a run, so that no two processes write the same files at one time.

A run of all chunks, or decisions made anew, has the folder for itself; runs of shares (`--shard`) have it together.
Those that read a complete run (`decide --out`) have it together too: meanwhile it stays complete, whoever writes.
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

__all__ = ["chunk_lock", "no_readers", "read_lock", "run_lock"]

_WAIT = 10.0
"""seconds that locks other than a run's are waited for: processes of a run that was killed may live as long"""


@contextmanager
def run_lock(folder: Path, file: Path, *, share: bool, reads: bool = False) -> Iterator[bool]:
    """Be the only run in a folder, or one of those that each do a share; whether the file system has such locks.

    Args:
        reads: the folder is what is read, so that no new one can take its place.

    Raises:
        UserError: another run is at work there.
    """
    refusal = f"another openblip capfilt is at work in {folder}; wait until it has ended"
    with locked(file, refusal if reads else f"{refusal}, or choose a new folder", shared=share) as held:
        yield held


@contextmanager
def read_lock(folder: Path, run_file: Path, file: Path) -> Iterator[None]:
    """Be one of those that read a complete run; whether it is complete is to be looked at within.

    Args:
        run_file: that of `run_lock`.
        file: that of `no_readers`.

    Raises:
        UserError: a run is at work there.
    """
    refusal = f"another openblip capfilt is at work in {folder}; wait until it has ended"
    with run_lock(folder, run_file, share=True, reads=True), locked(file, refusal, shared=True, wait=_WAIT):
        yield


@contextmanager
def no_readers(folder: Path, file: Path) -> Iterator[None]:
    """Within, nobody reads the run in a folder as a complete one, so that it may stop being one.

    Raises:
        UserError: somebody reads it still after some seconds.
    """
    refusal = (
        f"another openblip capfilt decide reads the run in {folder}, of which samples are to be computed anew; "
        "wait until it has ended, and run the same command again"
    )
    with locked(file, refusal, wait=_WAIT):
        yield


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
