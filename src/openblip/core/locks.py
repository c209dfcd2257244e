"""A lock on a file, which the kernel releases when its process ends, however that ends."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openblip.core.errors import UserError

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]

_PAUSE = 0.1
"""seconds between two attempts"""


@contextmanager
def locked(path: Path, refusal: str, *, shared: bool = False, wait: float = 0.0) -> Iterator[bool]:
    """Hold the lock on a file, which is made if it is not there; False where the file system has no such locks.

    Args:
        refusal: said where another process holds it.
        shared: with others that share it.
        wait: seconds that it is waited for.

    Raises:
        UserError: another process holds it.
    """
    until = time.monotonic() + wait
    while True:
        try:
            descriptor = _try(path, shared=shared)
            break
        except BlockingIOError:
            if time.monotonic() >= until:
                raise UserError(refusal) from None
            time.sleep(_PAUSE)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        # A file that cannot be written to, as in a folder that can only be read, can be locked all the same.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _try(path: Path, *, shared: bool) -> int | None:
    """A descriptor that holds the lock; None where the file system has none.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        return None
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _open(path)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # Whoever held it last may have removed the file meanwhile: then another one has its name, or none.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)
