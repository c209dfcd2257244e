"""`openblip caption` killed in the middle: what is there is whole, and the next run writes the rest."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from job_commands import CommandServer
from job_world import World

pytestmark = pytest.mark.slow

# After the first batch nothing comes for longer than a test takes: it is killed meanwhile, on any machine.
SLOWLY = """
import itertools, time
from openblip.tasks.predictor import Predictor
caption, done = Predictor.caption, itertools.count()
Predictor.caption = lambda *args, **options: (time.sleep(120 * min(1, next(done))), caption(*args, **options))[1]
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
    assert re.search(rf"{len(kept)} of {count} images (has|have) a text already", done.err)
    assert len(done.records) == count - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert texts(images) == whole


def test_a_killed_file_of_lines_is_continued(
    openblip: CommandServer, world: World, model: Path, tmp_path: Path
) -> None:
    how = ("caption", world.folder / "images", "--model", model, "--device", "cpu", "--dtype", "float32")
    openblip(*how, "--batch-size", 3, "--out", tmp_path / "whole.jsonl")
    whole, out = lines(tmp_path / "whole.jsonl"), tmp_path / "a.jsonl"
    resumed = (*how, "--batch-size", 3, "--out", out, "--resume")
    running = openblip.start(*resumed, before=SLOWLY)
    running.await_file(out)
    while not out.stat().st_size:  # it is there before its first line
        time.sleep(0.02)
    assert "another command is writing to" in openblip.refuse(*resumed)
    running.signal(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    kept = lines(out)
    assert 0 < len(kept) < len(whole)
    with open(out, "ab") as file:
        file.write(b'{"image": "cut off')
    assert "was begun with other settings (beams: 3 then, 2 now)" in openblip.refuse(*resumed, "--beams", 2)
    assert "exists already; continue it with --resume" in openblip.refuse(*resumed[:-1])
    done = openblip(*resumed)
    assert re.search(rf"{len(kept)} of {len(whole)} images (has|have) captions already", done.err)
    assert lines(out) == whole
    again = openblip(*resumed)
    assert (again.out, lines(out)) == ("", whole)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.jsonl", "a.jsonl", "a.jsonl.run.json"}


def test_only_a_file_of_its_own_is_continued(
    openblip: CommandServer, world: World, model: Path, captioner: Path, tmp_path: Path
) -> None:
    how = ("caption", world.images[0], "--model", model, "--device", "cpu", "--dtype", "float32", "--resume")
    own = tmp_path / "own.json"
    own.write_text('[{"image": "a.png", "caption": "mine"}]')
    refused = openblip.refuse(*how, "--out", own)
    assert "was not begun with --resume (own.json.run.json is not beside it)" in refused
    assert own.read_text() == '[{"image": "a.png", "caption": "mine"}]'
    out = tmp_path / "a.jsonl"
    openblip(*how, "--out", out)
    other = (*how[:3], captioner, *how[4:], "--out", out)
    assert f"was begun with other settings (model: {model} then, {captioner} now; weights: " in openblip.refuse(
        *other
    )
    out.write_text('{"file": "a.jpg"}\n')
    assert f'{out}, line 1 is no result with "image"' in openblip.refuse(*how, "--out", out)
    assert "a parquet file cannot be continued" in openblip.refuse(*how, "--out", tmp_path / "a.parquet")
    assert "--resume is for a file of JSON lines" in openblip.refuse(*how)


def lines(file: Path) -> list[tuple[str, str]]:
    """Image and caption of each result."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [(record["image"], record["captions"][0]["text"]) for record in records]
