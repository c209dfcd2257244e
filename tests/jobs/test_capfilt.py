"""CapFilt as a user runs it: from a folder to a training set that trains, with its page, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_commands import CommandServer
from job_world import NANO, TRAIN, World

pytestmark = pytest.mark.slow

WRITE = ("--max-new-tokens", 8, "--min-new-tokens", 2, "--device", "cpu", "--dtype", "float32")


def test_from_a_folder_to_a_new_model(
    openblip: CommandServer, world: World, model: Path, captioner: Path, tmp_path: Path
) -> None:
    web = world.as_folder(tmp_path / "web", 12)
    broken = sorted(web.glob("*.png"))[0]
    broken.write_bytes(b"no image")
    command = ("capfilt", web, tmp_path / "clean", "--captioner", captioner, "--filter", model, *WRITE)
    (first,) = openblip(*command, "--threshold", 0.0).records
    assert (first["samples"], first["quarantined"], first["images"]) == (12, 1, 11)
    assert (tmp_path / "clean" / "capfilt" / "report.html").stat().st_size > 10_000
    (again,) = openblip(*command, "--threshold", 0.0).records
    assert (again["new_chunks"], again["kept_texts"]) == (0, first["kept_texts"])
    decide = ("capfilt", "decide", tmp_path / "clean", "--policy", "blip2", "--keep", 1, "--layout", "jsonl")
    (decided,) = openblip(*decide, "--out", tmp_path / "best").records
    assert decided["kept_texts"] == decided["images"] == 11
    nothing = openblip("capfilt", "decide", tmp_path / "best", "--threshold", 1.0)
    assert nothing.records[0]["kept_texts"] == 0
    assert "no text is kept, so" in nothing.err
    openblip(*decide[:2], tmp_path / "best", *decide[3:])
    lines = (tmp_path / "best" / "captions.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["captions"]) for line in lines] == [1] * 11
    openblip(*TRAIN, tmp_path / "best", "--out", tmp_path / "run", *NANO, "--steps", 2)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    openblip("report", tmp_path / "best")


def test_mistakes(openblip: CommandServer, world: World, captioner: Path, model: Path, tmp_path: Path) -> None:
    def refuse(*words: object) -> str:
        return openblip.refuse("capfilt", world.folder, tmp_path / "out", *words)

    assert "name a --filter, which judges texts, a --captioner" in refuse()
    assert "--threshold is for what a filter says" in refuse("--captioner", captioner, "--threshold", 0.5)
    assert "matching needs a BLIP" in refuse("--filter", captioner)
    assert "no option" in refuse("--filter", model, "--treshold", 0.5)
    assert "between 0 and 1" in refuse("--filter", model, "--threshold", 2)
    assert "give I/N" in refuse("--filter", model, "--shard", "first")
    assert "numbered from 0 to 1" in refuse("--filter", model, "--shard", "2/2")
    assert "is no folder of openblip capfilt" in openblip.refuse("capfilt", "decide", tmp_path)
    assert not (tmp_path / "out").exists()
