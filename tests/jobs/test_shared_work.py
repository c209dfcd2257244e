"""Commands that torchrun has started twice write what one process writes, byte for byte, and speak with one voice.

Nine images, two of which cannot be used, go through models in batches of two: the last turn has work for one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_commands import ENVIRONMENT, CommandServer, Done
from job_pair import launch, new_store

from openblip.checkpoints.store import StoredModel, save_model
from openblip.tasks.feature_files import ShardHead, open_shard, shard_files

sys.path.append(str(Path(__file__).parents[1] / "unit" / "tasks"))
import small

pytestmark = pytest.mark.slow

IMAGES, BROKEN = 9, (3, 8)
HOW = ("--device", "cpu", "--batch-size", 2)
EXACT = (*HOW, "--dtype", "float32")
USE = ("photos", "--model", "blip", *EXACT)
SHORT = ("--min-new-tokens", 2, "--max-new-tokens", 5)
FEATURES = ("cache-features", "rows.jsonl", "--vision", "openblip:blip", *HOW, "--shard-mb", 0.001)
COMMANDS: dict[str, tuple[object, ...]] = {
    "caption": ("caption", *USE, *SHORT, "--nucleus", 0.9, "--num-captions", 2),
    "caption table": ("caption", *USE, *SHORT, "--out", "OUT/captions.parquet"),
    "caption texts": ("caption", *USE, *SHORT, "--write", "txt", "--out", "OUT"),
    "match": ("match", *USE, "--text", small.TEXTS[0], "--text", small.TEXTS[1], "--out", "OUT/matches.jsonl"),
    "classify": (
        *("classify", *USE, "--classes", "bus,dogs,cat", "--top", 1, "--truth", "folder"),
        *("--out", "OUT/classes.parquet", "--summary", "OUT/accuracy.json"),
    ),
    "score": (
        *("score", "rows.jsonl", "--model", "blip", *EXACT),
        *("--out", "OUT/scores.parquet", "--summary", "OUT/means.json"),
    ),
    "ask": (
        *("ask", "photos", "--model", "vqa", *EXACT, "--question", small.QUESTIONS[0], "--answers", "answers.txt"),
        *("--num-answers", 3),
    ),
    "embed": ("embed", *USE, "--text", small.TEXTS[0], "--out", "OUT/vectors.jsonl"),
    "cache-features": (*FEATURES, "--out", "OUT/features"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands run: two models, photos in folders of classes, a table, answers."""
    folder = tmp_path_factory.mktemp("place")
    save_model(folder / "blip", StoredModel(small.model(), small.tokenizer(), {}))
    save_model(folder / "vqa", StoredModel(small.vqa_model(), small.vqa_tokenizer(), {"task": "vqa"}))
    rows = []
    for number in range(IMAGES):
        image = folder / "photos" / ("bus", "dogs", "cat")[number // 3] / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        small.make_image(number).save(image)
        if number in BROKEN:
            image.write_bytes(b"no image")
        rows += [{"image": f"photos/{image.parent.name}/{number}.png", "caption": text} for text in small.TEXTS[:3]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answers.txt").write_text("\n".join(small.ANSWERS) + "\n")
    return folder


def both(openblip: CommandServer, cwd: Path, *arguments: object, before: str = "") -> list[Done]:
    store = new_store()
    return [running.wait(200) for running in launch(openblip, store, cwd, *arguments, before=before)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(done: Done) -> list[str]:
    """The lines of standard error without what depends on time and the number of processes."""
    varying = r"\d+\.\d s|, 2 processes|/[12](?=/)"
    lines = [re.sub(varying, "", line) for line in done.err.splitlines()]
    return [line for line in lines if "images/s" not in line]


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_write_what_one_writes(
    openblip: CommandServer, place: Path, tmp_path: Path, name: str
) -> None:
    found: dict[int, tuple[Done, dict[str, bytes]]] = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        words = [str(word).replace("OUT", str(out)) for word in COMMANDS[name]]
        if processes == 1:
            done = openblip.start(*words, cwd=place).wait()
        else:
            done, other = both(openblip, place, *words)
            assert (other.out, other.err) == ("", ""), "the second process speaks"
            assert other.code == 0
        found[processes] = done, files(out)
    (one, written), (two, shared) = found[1], found[2]
    assert two.code == one.code == (0 if name == "cache-features" else 1), two.err
    assert two.out.replace(str(tmp_path / "2"), "") == one.out.replace(str(tmp_path / "1"), "")
    assert sorted(shared) == sorted(written)
    for path, content in written.items():
        if path.endswith("skipped.jsonl"):  # in the order in which they were met
            assert sorted(shared[path].splitlines()) == sorted(content.splitlines())
        else:
            assert shared[path] == content, path
    assert said(two) == said(one)
    if name == "cache-features":
        assert sum(path.endswith(".safetensors") for path in written) > 2
    else:
        assert " skipped (cpu" in one.err
        assert ", 2 processes, " in two.err


SLOW_TOWER = """
import time
from openblip.models.tower import FrozenTower
forward = FrozenTower.forward
FrozenTower.forward = lambda self, pixels: (time.sleep(0.5), forward(self, pixels))[1]
"""
FAILING = """
from openblip.core.errors import UserError
from openblip.tasks.predictor import Predictor
match = Predictor.match
def fail(self, batch, texts):
    if RANK == 1 and any("2.png" in name for name in batch.names):
        raise UserError("the second process cannot read this")
    return match(self, batch, texts)
Predictor.match = fail
"""
MATCH = ("match", *USE, "--text", small.TEXTS[0])
MISTAKES: dict[str, tuple[tuple[object, ...], str, str]] = {
    "before the work": (
        ("match", "photos", "--model", "nothing/here/at/all"),
        "",
        "openblip: there is no model at",
    ),
    "while images are found": (("match", "blip", "--model", "blip"), "", "openblip: there is no image in blip"),
    "in one process": (MATCH, FAILING, "openblip: the second process cannot read this"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_told_once(openblip: CommandServer, place: Path, kind: str) -> None:
    words, before, sentence = MISTAKES[kind]
    done = both(openblip, place, *words, *(() if before else ("--text", "a")), before=before)
    assert [one.code for one in done] == [2, 2]
    lines = [line for one in done for line in one.err.splitlines() if not line.startswith("openblip: skipped")]
    assert len(lines) == 1, lines
    assert lines[0].startswith(sentence)


def test_features_that_were_stopped_resume(openblip: CommandServer, place: Path, tmp_path: Path) -> None:
    command = (*FEATURES, "--out", tmp_path / "features")
    store = new_store()
    started = launch(openblip, store, place, *command, before=SLOW_TOWER)
    started[0].await_file(tmp_path / "features" / "features-*.safetensors")
    for running in started:
        running.signal_group(signal.SIGINT)
    first, second = (running.wait() for running in started)
    assert (first.code, second.code, second.err) == (130, 130, "")
    told = re.search(r"openblip: stopped after (\d+) of 9 images; their features are in ", first.err)
    assert told is not None, first.err
    assert 0 < int(told[1]) < 9
    done, _ = both(openblip, place, *command)
    assert f"9 images ({told[1]} done before)" in done.err
    openblip(*FEATURES, "--out", tmp_path / "whole", cwd=place)
    assert features_in(tmp_path / "features") == features_in(tmp_path / "whole")
    assert len(features_in(tmp_path / "whole")) == IMAGES - len(BROKEN)


def features_in(folder: Path) -> dict[str, bytes]:
    """Of each image, whatever shards hold them."""
    shards = [(ShardHead.read(file).keys, open_shard(file)) for file in shard_files(folder)]
    return {key: rows[n, 0].numpy().tobytes() for keys, rows in shards for n, key in enumerate(keys)}


def test_results_of_a_command_that_was_stopped_are_a_beginning(
    openblip: CommandServer, place: Path, tmp_path: Path
) -> None:
    slow = "import time; from openblip.tasks.predictor import Predictor; match = Predictor.match\n"
    slow += "Predictor.match = lambda *w, **o: (time.sleep(0.5 + RANK), match(*w, **o))[1]\n"
    command, store = (*MATCH, "--out"), new_store()
    started = launch(openblip, store, place, *command, tmp_path / "matches.jsonl", before=slow)
    end = time.monotonic() + 100
    while not (tmp_path / "matches.jsonl").exists() or not (tmp_path / "matches.jsonl").read_bytes():
        assert time.monotonic() < end, started[0].err.read_text()
        time.sleep(0.01)
    for running in started:  # the first waits for the second
        running.signal_group(signal.SIGTERM)
    first, second = (running.wait() for running in started)
    assert (first.code, second.code, second.err) == (143, 143, "")
    assert first.err.splitlines()[-1] == "openblip: stopped"
    openblip(*command, tmp_path / "whole.jsonl", cwd=place, code=1)
    whole, found = (tmp_path / "whole.jsonl").read_bytes(), (tmp_path / "matches.jsonl").read_bytes()
    assert whole.startswith(found)
    assert 0 < len(found) < len(whole)
    assert found.endswith(b"\n")


def test_under_torchrun_itself(place: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*launcher, "openblip", *map(str, MATCH)],
        cwd=place, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr  # as the first process, which has left two images out
    assert done.stderr.count("openblip: 7 images done, 2 skipped (cpu, float32, 1 thread, 2 processes, ") == 1
    assert len(done.stdout.splitlines()) == 7
