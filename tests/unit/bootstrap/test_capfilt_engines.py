"""Engines: processes and Ray's actors give the tables of one process, and what stops them is reported."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace

import pytest
from capfilt_small import config, contents, output, run, write_tar

from openblip.bootstrap import engines
from openblip.bootstrap.engines import default_threads
from openblip.bootstrap.job import Chunk, Done, Worker
from openblip.bootstrap.run import Engine, run_capfilt
from openblip.core.errors import MissingExtra, UserError

Models = tuple[str, str, str]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    for number in range(3):
        write_tar(folder / f"{number:05d}.tar", 6 * number, 6, bad={7: b"no image"})
    return folder


@pytest.fixture(scope="module")
def one_process(web: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("runs") / "one"
    run(config(models, web, chunk_size=4), target, output(threshold=0.3))
    return target


@pytest.mark.slow
def test_two_processes(web: Path, models: Models, one_process: Path, tmp_path: Path) -> None:
    settings = config(models, web, chunk_size=4)
    totals = run_capfilt(settings, tmp_path / "two", output(threshold=0.3), engine=Engine(workers=2, threads=1))
    assert totals.new_chunks == 6
    assert contents(tmp_path / "two") == contents(one_process)


@pytest.mark.parametrize("name", ["local", "ray"])
def test_nothing_is_started_when_nothing_is_left(
    name: str, web: Path, models: Models, one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process is asked to work")

    monkeypatch.setattr(engines, "require", lambda *_: SimpleNamespace(is_initialized=refuse))
    monkeypatch.setattr(engines.ProcessPoolExecutor, "submit", refuse)
    settings, again = config(models, web, chunk_size=4), shutil.copytree(one_process, tmp_path / "again")
    engine = Engine(name=name, workers=2, threads=1)
    totals = run_capfilt(settings, again, output(threshold=0.3), engine=engine)
    assert (totals.chunks, totals.new_chunks, totals.samples) == (6, 0, 18)
    assert contents(again) == contents(one_process)
    (again / "capfilt" / "done" / "00002-00001.json").unlink()
    with pytest.raises(AssertionError, match="a process is asked"):
        run_capfilt(settings, again, output(threshold=0.3), engine=engine)


def test_a_cluster_that_is_named_is_asked_before_anything_is_written(
    web: Path, models: Models, one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another policy on a complete run: a wrong address must not cost its report."""

    def refuse(*_: object, **named: object) -> None:
        raise ConnectionError(f"nobody is at {named['address']}")

    absent = SimpleNamespace(is_initialized=lambda: False, init=refuse)
    monkeypatch.setattr(engines, "require", lambda *_: absent)
    again = shutil.copytree(one_process, tmp_path / "again")
    engine = Engine(name="ray", workers=2, threads=1, address="nope")
    with pytest.raises(UserError, match='there is no Ray cluster at "nope"'):
        run_capfilt(config(models, web, chunk_size=4), again, output(threshold=0.6), engine=engine)
    assert contents(again) == contents(one_process)


def test_later_chunks_are_looked_at_by_the_processes(
    web: Path, models: Models, one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a hole does not wait until it has looked at all chunks before it begins."""
    again = shutil.copytree(one_process, tmp_path / "again")
    (again / "capfilt" / "done" / "00000-00001.json").unlink()
    looked: list[str] = []
    done = Worker.done
    monkeypatch.setattr(Worker, "done", lambda self, chunk: (looked.append(chunk.name), done(self, chunk))[1])
    given: list[str] = []

    def run_two(make: object, config: object, chunks: Iterator[Chunk], **_: object) -> Iterator[Done]:
        given.extend(chunk.name for chunk in chunks)
        yield from ()

    monkeypatch.setattr("openblip.bootstrap.run.run_local", run_two)
    run_capfilt(
        config(models, web, chunk_size=4), again, output(threshold=0.3), engine=Engine(workers=2, threads=1)
    )
    assert looked == ["00000-00000", "00000-00001"]
    assert given == ["00000-00001", "00001-00000", "00001-00001", "00002-00000", "00002-00001"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_ray_gives_the_tables_of_one_process_though_a_worker_is_lost(
    web: Path, models: Models, tmp_path: Path
) -> None:
    """Ray starts another worker and gives it the chunk again; nothing is lost or doubled."""
    pytest.importorskip("ray")
    settings, target = config(models, web, chunk_size=1), tmp_path / "ray"
    lost: list[int] = []

    def kill_one() -> None:
        while next(target.glob("capfilt/done/*.json"), None) is None:
            time.sleep(0.01)
        lost.append(own_actors()[0])
        os.kill(lost[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    engine = Engine(name="ray", workers=2, threads=1)
    totals = run_capfilt(settings, target, output(threshold=0.3), engine=engine)
    killer.join()
    assert len(lost) == 1
    assert totals.samples == 18
    # The killed worker may have stored its chunk and not yet said so: the next one finds it done.
    assert totals.new_chunks in (17, 18)
    run(settings, tmp_path / "one", output(threshold=0.3))
    assert contents(target) == contents(tmp_path / "one")
    assert run_capfilt(settings, target, output(threshold=0.3), engine=engine).new_chunks == 0


def own_actors() -> list[int]:
    """Processes of Ray's that map, below this one: others may run on the machine."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_text().startswith("ray::MapWorker"):
                actors.append(int(folder.name))
        except (OSError, ValueError):
            continue  # it has just ended

    def is_own(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_own(parents[process]))

    return [actor for actor in actors if is_own(actor)]


def test_ray_that_is_not_installed(
    web: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"openblip\[ray\]"):
        run_capfilt(config(models, web), tmp_path / "out", engine=Engine(name="ray", threads=1))


@pytest.mark.slow
def test_a_process_that_is_killed(web: Path, models: Models, forked: ForkServerContext, tmp_path: Path) -> None:
    settings = config(models, web, chunk_size=1)
    engine = Engine(workers=2, threads=1)

    def kill_one() -> None:
        while next((tmp_path / "out").glob("capfilt/done/*.json"), None) is None:
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with pytest.raises(UserError, match=r"was killed.*run the same command again"):
        run_capfilt(settings, tmp_path / "out", output(threshold=0.3), engine=engine)
    killer.join()
    run(settings, tmp_path / "out", output(threshold=0.3))
    run(settings, tmp_path / "quiet", output(threshold=0.3))
    assert contents(tmp_path / "out") == contents(tmp_path / "quiet")


def test_settings_of_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r'no engine "rai".*"ray"'):
        Engine(name="rai")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads(10**6) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads(10**6) == 3
