"""What signals do to work that ends at once, to work that has to be saved, and to worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openblip.core.interrupt import (
    Stopped,
    StopSignals,
    Terminated,
    end_with_parent,
    ending_at_once,
    starting_workers,
)


def send(*signals: int) -> None:
    for signum in signals:
        os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_command_ends_at_once_and_the_same_signal_again_changes_nothing(
    signum: int, kind: type[BaseException]
) -> None:
    before, cleaned = signal.getsignal(signum), []

    def work() -> None:
        with ending_at_once():
            try:
                send(signum)
            finally:
                send(signum)  # as `timeout` does, to the process and to its group
                cleaned.append(True)

    with pytest.raises(KeyboardInterrupt) as ended:
        work()
    assert ended.type is kind
    assert cleaned == [True]
    assert signal.getsignal(signum) is before


def save_after(*sent: int) -> None:
    """Work that gets signals and then saves itself."""
    with StopSignals() as signals:
        send(*sent)
        assert signals.received == sent[0]
        raise Stopped("saved", signals.received)


def test_the_first_signal_is_noted_and_a_second_ctrl_c_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for sent in ((signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)):
        with pytest.raises(Stopped) as stopped:
            save_after(*sent)
        assert stopped.value.signum == sent[0]
    with pytest.raises(KeyboardInterrupt):
        save_after(signal.SIGINT, signal.SIGINT)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(Stopped):
        save_after(signal.SIGINT, signal.SIGINT)  # the launcher has passed it on


def test_a_signal_that_nobody_acted_upon_is_not_lost() -> None:
    reached = []

    def work() -> None:
        with ending_at_once():
            with StopSignals():
                send(signal.SIGTERM)
                reached.append("the end of the work")
            reached.append("beyond")

    with pytest.raises(Terminated):
        work()
    assert reached == ["the end of the work"]


def test_an_evaluation_is_broken_off_or_not_begun() -> None:
    reached = []

    def evaluate(name: str, *sent: int) -> str:
        reached.append(name)
        send(*sent)
        reached.append(f"{name} done")
        return name

    def work() -> None:
        with StopSignals() as signals:
            assert signals.unless_stopped(lambda: evaluate("first")) == "first"
            assert signals.unless_stopped(lambda: evaluate("second", signal.SIGTERM)) is None
            assert signals.unless_stopped(lambda: evaluate("third")) is None
            raise Stopped("saved", signals.received)

    with pytest.raises(Stopped):
        work()
    assert reached == ["first", "first done", "second"]


def test_stopped_says_how_to_go_on() -> None:
    stopped = Stopped("all is saved in a", signal.SIGTERM)
    assert str(stopped) == "all is saved in a; run the same command again to resume"
    assert stopped.exit_code == 143


def _work(ready: object) -> None:
    end_with_parent()
    ready.set()  # type: ignore[attr-defined]
    time.sleep(100)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_leaves_signals_to_its_parent(method: str) -> None:
    context = multiprocessing.get_context(method)
    ready = context.Event()
    worker = context.Process(target=_work, args=(ready,), daemon=True)
    with starting_workers():
        worker.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert ready.wait(100)
    kill = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        subprocess.run([sys.executable, "-S", "-c", kill, str(worker.pid), str(int(signum))], check=True)
    worker.join(0.5)
    assert worker.is_alive(), "a signal from elsewhere has ended it"
    worker.terminate()
    worker.join(100)
    assert worker.exitcode == 1


SERVER = """
import contextlib, multiprocessing, os, signal
from openblip.core.interrupt import Stopped, StopSignals, starting_workers

def stop_itself(received):
    with contextlib.suppress(Stopped), StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        received.value = signals.received
        raise Stopped("saved", signals.received)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    with starting_workers():
        worker = context.Process(target=int)
        worker.start()
        worker.join()
    received = context.Value("i")
    process = context.Process(target=stop_itself, args=(received,))
    process.start()
    process.join()
    print(received.value, process.exitcode)
"""


def test_signals_reach_what_a_fork_server_of_workers_starts(tmp_path: Path) -> None:
    """The first worker starts the server, with signals blocked; what it starts later inherits that."""
    script = tmp_path / "script.py"
    script.write_text(SERVER)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=400)
    assert done.stdout == f"{int(signal.SIGTERM)} 0\n", done.stderr


def test_a_worker_ends_with_its_parent() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        with contextlib.suppress(BaseException):
            context = multiprocessing.get_context("fork")
            ready = context.Event()
            with starting_workers():
                worker = context.Process(target=_work, args=(ready,))
                worker.start()
            ready.wait(100)
            os.write(write, b"ready")
            time.sleep(100)
        os._exit(1)
    os.close(write)
    assert os.read(read, 5) == b"ready"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(read, 1) == b""  # the worker held the other end
    os.close(read)
