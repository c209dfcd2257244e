"""`openblip datasets` and `--data-root`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import miniature
import pytest

from openblip.cli.entry import main
from openblip.core.places import DATA_ROOT
from openblip.data.cards import CARDS


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_ROOT, "")


def test_the_table_names_every_dataset_and_what_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["dataset"] for row in rows] == list(CARDS)
    assert "here" not in rows[0]
    miniature.coco(tmp_path)
    miniature.vqav2(tmp_path)
    assert main(["datasets", "--data-root", str(tmp_path)]) == 0
    here = {row["dataset"]: row["here"] for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (here["coco"], here["vqav2"]) == (", ".join(CARDS["coco"].splits), "train, val, test, test-dev")
    assert (here["okvqa"], here["gqa"]) == ("nothing", "nothing")


def test_a_card_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = miniature.coco(tmp_path)
    (home / "annotations" / "captions_val2017.json").unlink()
    assert main(["datasets", "coco", "--data-root", str(tmp_path)]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["dataset"] == "coco"
    assert card[f"coco:test in {tmp_path}"].endswith("coco_karpathy_test.json")
    missing = card[f"coco:val2017 in {tmp_path}"]
    assert missing.startswith("captions_val2017.json is not there; get it from http://images.cocodataset.org")


@pytest.mark.parametrize("data_root", ["--data-root", "--data_root", "--data-root="])
def test_every_command_with_data_takes_a_data_root(
    data_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature.coco(tmp_path)
    root = [f"{data_root}{tmp_path}"] if data_root.endswith("=") else [data_root, str(tmp_path)]
    assert main(["tokenizer", "coco:train", *root, "--out", str(tmp_path / "tokenizer"), "--vocab-size", "80"]) == 0
    assert os.environ[DATA_ROOT] == str(tmp_path)


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "probe", "classify", "score", "capfilt", "tokenizer", "bootstrap", "index-build"]
)
def test_the_help_tells_of_the_data_root(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert "--data-root FOLDER" in capsys.readouterr().out


ASK = "set --data-root or OPENBLIP_DATA"
EVALUATE = ("evaluate", "coco:test", "--model", "m")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("datasets", "cocoo"), 'there is no dataset "cocoo" (did you mean "coco"?); openblip datasets lists them'),
        (("datasets", "--data-root", "/nowhere"), f"there is no folder of datasets /nowhere; {ASK} to another"),
        ((*EVALUATE, "--data-root"), "--data-root needs a value"),
        ((*EVALUATE, "--data-root="), "--data-root needs the folder that holds the published datasets"),
        (EVALUATE, f"published datasets such as coco:test need the folder that holds them; {ASK}"),
        (("info", "m", "--data-root", "/tmp"), 'openblip info has no option "--data-root"'),
    ],
)
def test_mistakes_are_one_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"openblip: {sentence}")
    assert len(err.splitlines()) == 1


def test_score_takes_a_data_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "coco:test", "--model", "m", "--data-root", str(tmp_path)]) == 2
    assert f"coco:test is not complete in {tmp_path / 'coco'}" in capsys.readouterr().err


def test_a_terminal_shows_whole_addresses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("openblip.cli.datasets.person", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["datasets", "coco"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "coco"
    assert "  images val2014: http://images.cocodataset.org/zips/val2014.zip (40,504 images)" in lines
