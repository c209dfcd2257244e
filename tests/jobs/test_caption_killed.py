"""`openblip caption --write txt` killed in the middle: what is there is whole, and the next run writes the rest."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from job_commands import CommandServer
from job_world import World

pytestmark = pytest.mark.slow

# Each batch waits a little, so that there is a moment to kill it in.
SLOWLY = """
import time
from openblip.tasks.predictor import Predictor
caption = Predictor.caption
Predictor.caption = lambda *args, **options: (time.sleep(0.3), caption(*args, **options))[1]
"""
HOW = ("--write", "txt", "--device", "cpu", "--dtype", "float32", "--batch-size", 3)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("*.txt"))}


def test_a_killed_command_resumes(openblip: CommandServer, world: World, model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(world.folder / "images", images)
    for text in images.glob("*.txt"):
        text.unlink()
    count = len(list(images.glob("*.png")))
    openblip("caption", images, "--model", model, *HOW, "--out", tmp_path / "whole")
    whole = texts(tmp_path / "whole")
    assert len(whole) == count
    running = openblip.start("caption", images, "--model", model, *HOW, before=SLOWLY)
    running.await_file(images / "*.txt")
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in images.glob("*.txt")}
    assert 0 < len(kept) < count
    assert all(whole[path.name] == path.read_text() for path in kept)
    done = openblip("caption", images, "--model", model, *HOW)
    assert f"{len(kept)} of {count} images skipped" in done.err
    assert len(done.records) == count - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert texts(images) == whole
