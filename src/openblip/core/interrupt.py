"""Stopping on request, by SIGINT (Ctrl-C) or SIGTERM (`timeout`, Slurm, Kubernetes).

    with ending_at_once():              # a command: a signal raises KeyboardInterrupt, or its subclass Terminated
        with StopSignals() as signals:  # work that has to be saved: it is noted, and acted upon between steps
            ...
    with starting_workers():            # processes started here do not get the signals that their group gets
        ...

Whoever stops a job mostly signals its whole process group. The main process alone decides what that means; its
workers call `end_with_parent` and continue until it lets them go or is gone.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType, TracebackType
from typing import Any, NoReturn, TypeVar

__all__ = [
    "AGAIN",
    "RESUME",
    "StopSignals",
    "Stopped",
    "Terminated",
    "end_with_parent",
    "ending_at_once",
    "starting_workers",
]

RESUME = "run the same command with --resume to continue"
AGAIN = "run the same command again to resume"

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Handler = Callable[[int, FrameType | None], None]
_SAME_SECONDS = 1.0
"""a signal that comes again so soon is the same one: `timeout` and launchers send it to a process and its group"""


class Terminated(KeyboardInterrupt):
    """SIGTERM came and ended the work at once, as Ctrl-C does."""


class Stopped(Exception):
    """Work was requested to stop and saved itself.

    Attributes:
        done: what is saved, and where.
        signum: SIGINT or SIGTERM.
        exit_code: what a command should end with: 130 or 143.
    """

    def __init__(self, done: str, signum: int = signal.SIGINT, *, again: str = AGAIN) -> None:
        super().__init__(f"{done}; {again}")
        self.done = done
        self.signum = int(signum)
        self.exit_code = 128 + int(signum)


def _end_now(signum: int) -> NoReturn:
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


@contextmanager
def _handling(handler: _Handler) -> Iterator[None]:
    """Within, SIGINT and SIGTERM call `handler`; outside the main thread they are left as they are."""
    before: dict[int, Any] = {}
    blocked: set[int] | None = None
    try:
        if threading.current_thread() is threading.main_thread():
            before = {signum: signal.signal(signum, handler) for signum in _SIGNALS}
            if hasattr(signal, "pthread_sigmask"):
                # A fork server that `starting_workers` started has them blocked, and so has all that it starts.
                blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        yield
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within, SIGINT raises KeyboardInterrupt and SIGTERM Terminated, so that what is open is closed."""
    process, last = os.getpid(), -_SAME_SECONDS

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != process:
            os._exit(128 + signum)
        now = time.monotonic()
        before, last = last, now
        if now - before >= _SAME_SECONDS:
            _end_now(signum)

    with _handling(end):
        yield


class StopSignals:
    """While entered, SIGINT and SIGTERM are noted in `received` (the first one) and the step continues to its end.

    A second SIGINT interrupts at once, unless a launcher such as torchrun started the process: it passes on what
    the process group got already. A signal that nobody acted upon is sent again on leaving. Outside the main thread
    signals are left as they are.
    """

    def __init__(self) -> None:
        self.received = 0
        self._process = os.getpid()
        self._launched = "LOCAL_RANK" in os.environ
        self._at_once = False
        self._handlers = _handling(self._note)

    def __enter__(self) -> StopSignals:
        self._handlers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handlers.__exit__(None, None, None)
        if self.received and kind is None:
            signal.raise_signal(self.received)

    def unless_stopped(self, work: Callable[[], Result]) -> Result | None:
        """What `work` gives; None where a signal has broken it off, or was noted before."""
        found = None
        try:
            self._at_once = True
            if not self.received:
                found = work()
        except KeyboardInterrupt:
            if not self.received:
                raise
        finally:
            self._at_once = False
        return found

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child that was forked meanwhile, not by `starting_workers`
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        before, self.received = self.received, self.received or signum
        impatient = before and signum == signal.SIGINT and not self._launched
        if impatient or (self._at_once and not before):
            _end_now(signum)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes started within have SIGINT and SIGTERM blocked from their first moment on."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it unblocks the signals when it starts its own process
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """In a process that was started within `starting_workers`: end when the parent is gone or terminates it.

    A SIGTERM from anyone else, such as one to the process group, does nothing.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    arguments = (parent.pid, parent.sentinel)
    threading.Thread(target=_watch, args=arguments, name="openblip-parent", daemon=True).start()


def _watch(parent: int, sentinel: int) -> None:
    # A fork server stands between some workers and their parent: they learn of its end by the sentinel. Forked
    # workers inherit each other's ends of it, so it says nothing while others live: they look who their parent is.
    forked = os.getppid() == parent
    while os.getppid() == parent if forked else not multiprocessing.connection.wait([sentinel], 0):
        if not hasattr(signal, "sigtimedwait"):  # macOS cannot tell who sent a signal
            time.sleep(1.0)
            continue
        sent = signal.sigtimedwait((signal.SIGTERM,), 1.0)
        if sent is not None and sent.si_pid == parent:
            break
    os._exit(1)
