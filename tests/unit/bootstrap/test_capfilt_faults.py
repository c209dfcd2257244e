"""Killed at every point in turn, or again and again at random ones: the result is that of one quiet run."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from capfilt_small import config, contents, make_image, output, run, write_tar

from openblip.bootstrap.models import open_models
from openblip.bootstrap.pipeline import Pipeline
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import decide_again
from openblip.bootstrap.summary import summarise
from openblip.core.config import to_dict
from openblip.core.errors import UserError
from openblip.report import write_report
from openblip.report.capfilt import capfilt_report

Models = tuple[str, str, str]
OPERATIONS = ("replace", "unlink", "rmdir", "fsync")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write_tar(folder / "00000.tar", 0, 3, bad={2: make_image(2)[:200]})
    write_tar(folder / "00001.tar", 3, 1)
    return folder


@pytest.fixture(autouse=True)
def opened_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the models and waiting for the disk take most of the time of runs as small as these.

    SIGKILL does not lose what was written to the kernel, so nothing waits for the disk here.
    """
    opened = open_models(models[0], models[1])
    monkeypatch.setattr("openblip.bootstrap.run.open_models", lambda *_, **__: opened)
    monkeypatch.setattr(os, "fsync", lambda file: os.fstat(file) and None)  # fails as it does


@pytest.fixture
def computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing takes much of the rest: what the models give for a batch is computed once."""
    compute, known = Pipeline._process, {}

    def process(self: Pipeline, batch: Sequence[Any]) -> None:
        how = (self.models.captioner is not None, self.decode, self.prompt, self.max_length)
        key = (how, *((ready.row.key, ready.row.image_hash, tuple(ready.texts)) for ready in batch))
        if key not in known:
            compute(self, batch)
            known[key] = copy.deepcopy([ready.row.texts for ready in batch])
        for ready, texts in zip(batch, known[key], strict=True):
            ready.row.texts = copy.deepcopy(texts)

    monkeypatch.setattr(Pipeline, "_process", process)


def states(folder: Path, work: Callable[[], object]) -> list[Path]:
    """What a kill could leave of `folder`: as it stands before each operation that changes what is on the disk.

    One thread alone writes, so a copy is what SIGKILL at that moment would leave; what is in the buffers of open
    files is in neither. `test_killed_again_and_again` kills in earnest.
    """
    found: list[Path] = []

    def noted(original: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **kwargs: object) -> object:
            state = folder.with_name(f"{folder.name}-killed-{len(found)}")
            found.append(shutil.copytree(folder, state) if folder.exists() else state)
            return original(*args, **kwargs)

        return operation

    with pytest.MonkeyPatch.context() as patched:
        for name in OPERATIONS:
            patched.setattr(os, name, noted(getattr(os, name)))
        work()
    assert len(found) > 10
    return found


@pytest.mark.usefixtures("computed_once")
@pytest.mark.parametrize("layout", ["tars", "jsonl"])
def test_killed_at_every_point(layout: str, web: Path, models: Models, tmp_path: Path) -> None:
    settings, made = config(models, web, chunk_size=2), output(layout, threshold=0.2)
    run(settings, tmp_path / "quiet", made)
    wanted = contents(tmp_path / "quiet")
    for target in states(tmp_path / "run", lambda: run(settings, tmp_path / "run", made)):
        half = {path: data for path, data in contents(target).items() if "/." not in f"/{path}"}
        assert half.items() <= wanted.items(), "a file was half written, or is not what it should be"
        run(settings, target, made)
        assert contents(target) == wanted, target.name
    assert contents(tmp_path / "run") == wanted


@pytest.mark.usefixtures("computed_once")
def test_deciding_anew_killed_at_every_point(web: Path, models: Models, tmp_path: Path) -> None:
    """No file vouches for decisions that are half made; the new ones and the old ones can both be made whole."""
    settings, old, new = config(models, web, chunk_size=2), output(threshold=0.2), output("jsonl", threshold=0.6)
    run(settings, tmp_path / "old", old)
    write_report(Places(tmp_path / "old").report, capfilt_report(tmp_path / "old"))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    decide_again(tmp_path / "new", new)
    decided = contents(tmp_path / "new")
    assert not Places(tmp_path / "new").report.exists(), "the page speaks of the old decisions"
    again = shutil.copytree(tmp_path / "old", tmp_path / "again")
    for target in states(again, lambda: decide_again(again, new)):
        files = contents(target)
        totals = json.loads(files["capfilt/totals.json"])["output"]
        assert totals in (to_dict(old), None, to_dict(new))
        if totals == to_dict(old):
            tables = {name for name in files if name.startswith("capfilt/table/0")}
            assert all(files[name] == contents(tmp_path / "old")[name] for name in tables)
        elif totals is None:
            with pytest.raises(UserError, match="run openblip capfilt decide again"):
                summarise(target)
        back = shutil.copytree(target, target.with_name(f"{target.name}-back"))
        decide_again(target, new)
        assert contents(target) == decided, target.name
        decide_again(back, old)
        assert {name: data for name, data in contents(back).items() if "report." not in name} == {
            name: data for name, data in contents(tmp_path / "old").items() if "report." not in name
        }


@pytest.mark.usefixtures("computed_once")
@pytest.mark.slow
def test_data_that_change_after_a_kill_are_seen(models: Models, tmp_path: Path) -> None:
    """What a killed run left of the old texts, in whatever file, is not taken for that of the new ones."""
    web, made = tmp_path / "web", output(threshold=0.2)
    settings = config(models, web, chunk_size=2, batch_size=1, captioner="")
    old = write_tar(tmp_path / "old" / "0.tar", 0, 3).read_bytes()
    new = write_tar(tmp_path / "new" / "0.tar", 4, 3).read_bytes()
    assert len(old) == len(new)
    web.mkdir()
    (web / "0.tar").write_bytes(new)
    run(settings, tmp_path / "quiet", made)
    wanted, done = contents(tmp_path / "quiet"), tmp_path / "old-run"
    (web / "0.tar").write_bytes(old)
    killed = states(done, lambda: run(settings, done, made))
    (web / "0.tar").write_bytes(new)
    for target in killed:
        run(settings, target, made)
        assert contents(target) == wanted, target.name
    # The old run was through, and that of the new texts is killed at every point too.
    again = shutil.copytree(done, tmp_path / "new-run")
    for number, target in enumerate(states(again, lambda: run(settings, again, made))):
        if number and Places(target).totals.exists():
            assert contents(target) == wanted, "the old totals still say that all is done"
        run(settings, target, made)
        assert contents(target) == wanted, target.name


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a process of its own; its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(0)


def test_killed_again_and_again(web: Path, models: Models, tmp_path: Path) -> None:
    """By a timer that counts the process's own time, so that a busy machine changes nothing."""
    settings, made = config(models, web, chunk_size=1), output(threshold=0.2)
    run(settings, tmp_path / "warm", made)  # the first run of a process takes longer
    began = time.process_time()
    run(settings, tmp_path / "quiet", made)
    needed = time.process_time() - began
    draw, kills = random.Random(0), 0
    for target in (tmp_path / name for name in "abc"):
        killed, longest = True, 0.4
        while killed:
            seconds = draw.uniform(0.05, longest) * needed
            longest *= 1.1  # what a kill has cost must not be lost for ever

            def work(seconds: float = seconds, target: Path = target) -> None:
                signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process as abruptly as SIGKILL
                run(settings, target, made)

            killed = os.WIFSIGNALED(os.waitpid(in_child(work), 0)[1])
            kills += killed
        run(settings, target, made)  # removes what the last kill left
        assert contents(target) == contents(tmp_path / "quiet")
    assert kills >= 5


def test_a_full_disk_is_told_and_the_run_goes_on_later(
    web: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, made = config(models, web, chunk_size=2), output(threshold=0.2)
    run(settings, tmp_path / "quiet", made)
    original, calls = os.fsync, [0]

    def full(file: int) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(28, "No space left on device")
        original(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"the disk is full: .*run the same command again"):
            run(settings, tmp_path / "full", made)
    run(settings, tmp_path / "full", made)
    assert contents(tmp_path / "full") == contents(tmp_path / "quiet")
