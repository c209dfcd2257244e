"""The benchmark beside other tools: what is measured, and what is said where a peer is missing or fails.

The peers here are small packages with the functions that the drivers call; what they measure is not looked at.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import small

from benchmarks import search_peers
from openblip.checkpoints.store import StoredModel, save_model

RCLIP = """
class Model:
    def compute_text_features(self, texts): return [len(text) for text in texts]
    def compute_preprocessed_image_features(self, images): return images
"""
MAIN = """
import os
from rclip.model import Model
class RClip:
    def __init__(self): self.names, self.model = [], Model()
    def ensure_index(self, folder):
        assert os.environ["RCLIP_DATADIR"]
        self.names = self.model.compute_preprocessed_image_features(sorted(os.listdir(folder)))
    def _get_features(self, folder): return self.names, None
    def search(self, text, folder, top):
        self.model.compute_text_features([text])
        return self.names[:top]
def init_rclip(folder, batch, no_indexing):
    assert no_indexing
    opened = RClip()
    return opened, opened.model, None
"""


def python_with(folder: Path, **files: str) -> str:
    """A Python that has a package `rclip` of these modules besides."""
    package = folder / "site" / "rclip"
    package.mkdir(parents=True)
    for name, code in {"__init__": "", **files}.items():
        (package / f"{name}.py").write_text(code)
    about = folder / "site" / "rclip-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rclip\nVersion: 9.9\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_the_command_measures_what_is_there_and_says_what_is_not(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m", StoredModel(small.model(), small.tokenizer()))
    (tmp_path / "texts.txt").write_text("a dog\ntwo dogs\n")
    images = photos / "new"
    for text in images.glob("*.txt"):
        text.unlink()
    how = ["--model", str(tmp_path / "m"), "--dtype", "float32", "--texts", str(tmp_path / "texts.txt")]
    peers = ["--rclip", python_with(tmp_path, model=RCLIP, main=MAIN), "--faiss", python_with(tmp_path / "other")]
    code = search_peers.main([str(images), *how, *peers, "--vectors", "2000", "--out", str(tmp_path / "r.json")])
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "r.json").read_text())
    rows = {row["case"]: row for row in result["rows"]}
    assert list(rows) == [
        *("openblip, ITC alone", "rclip", "clip-retrieval"),
        *("search alone, 2,000 x 256: segments", "search alone, 2,000 x 256: faiss flat"),
    ]
    assert code == 0
    assert rows["rclip"]["version"] == "9.9"
    for name in ("openblip, ITC alone", "rclip"):
        row = rows[name]
        assert row["images"] == 4
        assert 0 < row["images_per_s"] <= row["images_per_s_without_model"]
        assert 0 <= row["query_p50_ms_without_model"] <= row["query_p50_ms"]
    missing = {"case": "clip-retrieval", "not_measured": "clip-retrieval is not installed in that Python"}
    assert rows["clip-retrieval"] == missing


def test_a_peer_that_fails_says_why(photos: Path, tmp_path: Path) -> None:
    broken = "def init_rclip(*a, **o): raise OSError('the weights cannot be downloaded')\n"
    python = python_with(tmp_path, model=RCLIP, main=broken)
    told = search_peers.peer("rclip", python, str(photos), ["a dog"], tmp_path / "work")
    assert told == {"not_measured": "it failed: OSError: the weights cannot be downloaded"}


def test_faiss_finds_the_same_neighbours(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed")
    ours, theirs = search_peers.flat(3000, sys.executable, searches=5, folder=tmp_path)
    assert theirs["outputs_agree"]
    assert ours["queries_per_s"] > 0


def test_mistakes(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search_peers.main([str(tmp_path / "none"), "--model", "m"]) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(search_peers.UserError, match="is no Python that runs"):
        search_peers.peer("rclip", str(tmp_path / "no-python"), str(photos), ["x"], tmp_path / "work")
