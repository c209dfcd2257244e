"""Two runs in one folder: the second is refused, shares go on together, and no run harms what another writes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from capfilt_small import config, contents, output, run, write_tar

from openblip.bootstrap import locks
from openblip.bootstrap.job import Shard
from openblip.bootstrap.locks import chunk_lock, read_lock, run_lock
from openblip.bootstrap.pipeline import Pipeline
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import decide_again
from openblip.core.errors import UserError

Models = tuple[str, str, str]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write_tar(folder / "00000.tar", 0, 6)
    write_tar(folder / "00001.tar", 6, 3)
    return folder


@pytest.fixture(scope="module")
def done(models: Models, web: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("done") / "out"
    run(config(models, web, batch_size=2), target)
    return target


def test_a_second_run_is_refused_while_the_first_is_at_work(
    models: Models, web: Path, done: Path, tmp_path: Path
) -> None:
    settings, target, refused = config(models, web, batch_size=2), tmp_path / "out", []

    def meanwhile(*_: object) -> None:
        for shard in (None, Shard(0, 2)):
            with pytest.raises(UserError, match=r"another openblip capfilt is at work in .*out; wait until"):
                run(settings, target, shard=shard)
            refused.append(shard)

    run(settings, target, on_chunk=meanwhile)
    assert len(refused) == 4
    assert contents(target) == contents(done)
    with (
        run_lock(target, Places(target).run_lock, share=True),
        pytest.raises(UserError, match=r"another openblip capfilt is at work in .*out; wait until it has ended$"),
    ):
        decide_again(target, output("jsonl"))
    assert contents(target) == contents(done)


def test_what_is_decided_on_elsewhere_is_not_written_to_meanwhile(
    models: Models, web: Path, done: Path, tmp_path: Path
) -> None:
    settings, target, read = config(models, web, batch_size=2), tmp_path / "out", []
    run(settings, target)

    def meanwhile(*_: object) -> None:
        with pytest.raises(UserError, match=r"another openblip capfilt is at work in .*out; wait until"):
            run(settings, target)
        read.append(decide_again(target, output("jsonl"), target=tmp_path / "other"))

    decide_again(target, output("jsonl"), target=tmp_path / "set", on_chunk=meanwhile)
    assert [totals.chunks for totals in read] == [2, 2]
    with (
        run_lock(target, Places(target).run_lock, share=False),
        pytest.raises(UserError, match=r"another openblip capfilt is at work in .*out; wait until it has ended$"),
    ):
        decide_again(target, output("jsonl"), target=tmp_path / "set")
    assert contents(target) == contents(done)
    by_another_name = tmp_path / "same"
    by_another_name.symlink_to(target)
    assert decide_again(target, output("jsonl"), target=by_another_name).chunks == 2
    assert contents(target) == contents(tmp_path / "set")


def test_a_run_that_is_read_stays_complete(
    models: Models, web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of a source that has changed take back that the run is complete: not while somebody reads it."""
    monkeypatch.setattr(locks, "_WAIT", 0.2)
    source, target, asked = shutil.copytree(web, tmp_path / "web"), tmp_path / "out", []
    settings = config(models, source, batch_size=2)
    run(settings, target)
    write_tar(source / "00001.tar", 7, 3)
    before = contents(target)

    def share(*_: object) -> None:
        with pytest.raises(UserError, match=r"capfilt decide reads the run in .*out, .*; wait until"):
            run(settings, target, shard=Shard(1, 2))
        asked.append("share")

    totals = decide_again(target, output("none"), target=tmp_path / "set", on_chunk=share)
    assert (totals.chunks, totals.samples) == (2, 9)
    assert contents(target) == before

    def read(*_: object) -> None:
        with pytest.raises(UserError, match=r"out is not complete"):
            decide_again(target, output("none"), target=tmp_path / "other")
        asked.append("reader")

    assert run(settings, target, shard=Shard(1, 2), on_chunk=read).new_chunks == 1
    assert asked == ["share", "share", "reader"]


def test_a_run_in_a_folder_that_can_only_be_read_is_locked_too(
    models: Models, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, opened = shutil.copytree(done, tmp_path / "out"), os.open

    def read_only(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).startswith(str(target)) and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *more, **named)

    places = Places(target)
    with run_lock(target, places.run_lock, share=False), monkeypatch.context() as patched:
        patched.setattr(os, "open", read_only)
        with pytest.raises(UserError, match="is at work in"):
            decide_again(target, output("none"), target=tmp_path / "set")
    monkeypatch.setattr(os, "open", read_only)
    with read_lock(target, places.run_lock, places.read_lock):
        monkeypatch.undo()
        with pytest.raises(UserError, match="is at work in"), run_lock(target, places.run_lock, share=False):
            pass
    places.read_lock.unlink()
    places.run_lock.unlink()
    monkeypatch.setattr(os, "open", read_only)
    assert decide_again(target, output("none"), target=tmp_path / "set").chunks == 2


def test_shares_are_at_work_together(models: Models, web: Path, done: Path, tmp_path: Path) -> None:
    settings, target = config(models, web, batch_size=2), tmp_path / "out"
    run(settings, target, shard=Shard(0, 2), on_chunk=lambda *_: run(settings, target, shard=Shard(1, 2)))
    assert run(settings, target).new_chunks == 0
    assert contents(target) == contents(done)


def test_a_chunk_has_one_process(
    models: Models, web: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_WAIT", 0.2)
    settings, target = config(models, web, batch_size=2), tmp_path / "out"
    with (
        chunk_lock(Places(target).lock("00001-00000"), "web"),
        pytest.raises(UserError, match=r"at work on the same samples of .*00001\.tar; .* the same --shard"),
    ):
        run(settings, target, shard=Shard(1, 2))
    run(settings, target)
    assert contents(target) == contents(done)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with run_lock(tmp_path, tmp_path / "lock", share=False) as held:
            os.write(writer, b"1" if held else b"0")
            signal.pause()
    try:
        assert os.read(reader, 1) == b"1"
        with pytest.raises(UserError, match="is at work"), run_lock(tmp_path, tmp_path / "lock", share=True):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with run_lock(tmp_path, tmp_path / "lock", share=False) as held:
        assert held
    os.close(reader)
    os.close(writer)


def test_a_file_system_without_locks_stops_no_run(
    models: Models, web: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    settings, target = config(models, web, batch_size=2), tmp_path / "out"
    live = target / ".00000-00000.tar.0123456789abcdef.tmp"

    def other(*_: object) -> None:
        live.write_bytes(b"that another run is writing")

    run(settings, target, on_chunk=other)
    assert live.read_bytes() == b"that another run is writing"
    monkeypatch.undo()
    run(settings, target)
    assert contents(target) == contents(done), "what a kill has left is removed where no other run is at work"


def test_rows_that_two_processes_wrote_are_taken_once(
    models: Models, web: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions without locks left them."""
    settings, target = config(models, web, batch_size=2), tmp_path / "out"
    compute, calls = Pipeline._process, [0]

    def stopped(self: Pipeline, batch: Sequence[Any]) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        compute(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Pipeline, "_process", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(settings, target)
    begun = Places(target).begun("00000-00000")
    head, first, second = begun.read_bytes().splitlines(keepends=True)
    begun.write_bytes(b"".join((head, head, first, first, second, second)))
    run(settings, target)
    assert contents(target) == contents(done)
