"""Submission files of captions (COCO, NoCaps) and judgements (NLVR2) from miniature copies, as their servers read
them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import miniature
import pytest
import small
from kept_results import kept_predictions

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.data.sample import Sample
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.tasks.submission import image_number, write_submission


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for make in (miniature.coco, miniature.nocaps, miniature.nlvr2):
        make(root)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    blip = small.model()
    save_model(folder / "captioner", StoredModel(blip.part(encoder=False, decoder=True), small.tokenizer()))
    save_model(folder / "pretrained", StoredModel(blip, small.tokenizer()))
    nlvr = BlipNlvr(NlvrConfig(vision=blip.config.vision, text=blip.config.text, merge_from=1))
    nlvr.start_from(blip)
    save_model(folder / "nlvr", StoredModel(nlvr, small.tokenizer()))
    return folder


@pytest.fixture(autouse=True)
def _named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_ROOT, str(root))


def submitted(spec: str, model: Path, out: Path) -> int:
    words = ["--model", str(model), "--device", "cpu", "--samples", "1", "--beams", "1", "--max-new-tokens", "6"]
    return main(["evaluate", spec, *words, "--submission", str(out)])


@pytest.mark.parametrize(
    ("spec", "name", "ids"),
    [
        ("coco:test", "captions_test_small_results.json", [73]),  # Karpathy's row names its image alone
        ("coco:val2014", "captions_val2014_small_results.json", [42, 73, 133]),
        ("coco:test2014", "captions_test2014_small_results.json", [1, 14]),  # without captions
        ("nocaps:val", "val.json", [0, 1, 2]),
        ("nocaps:test", "test.json", [0, 1, 2]),  # without captions
    ],
)
def test_captions(
    spec: str, name: str, ids: list[int], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    assert submitted(spec, models / "captioner", out) == 0
    printed = capsys.readouterr()
    rows = json.loads(out.read_text())
    assert [set(row) for row in rows] == [{"image_id", "caption"}] * len(rows)
    assert all(type(row["image_id"]) is int and type(row["caption"]) is str for row in rows)
    assert [row["image_id"] for row in rows] == ids
    if spec in ("nocaps:test", "coco:test2014"):
        assert json.loads(printed.out) == {"num_without_captions": float(len(ids))}
        assert f"{len(ids)} images without captions in the data: predictions only" in printed.err
    else:
        assert "CIDEr" in json.loads(printed.out)


@pytest.mark.parametrize("model", ["captioner", "pretrained"])
@pytest.mark.parametrize("spec", ["nocaps:test", "coco:test2014"])
def test_a_split_without_captions_is_predicted_without_a_submission_too(
    spec: str, model: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(models / model), "--device", "cpu", "--beams", "1", "--max-new-tokens", "6"]
    assert main(["evaluate", spec, *words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    count = 3 if spec == "nocaps:test" else 2
    assert json.loads(printed.out) == {"num_without_captions": count}
    assert f"{count} images without captions in the data: predictions only" in printed.err
    records = kept_predictions(tmp_path)
    assert [record["references"] for record in records] == [[]] * count
    assert all(isinstance(record["caption"], str) for record in records)


def test_a_pretrained_model_captions_and_its_retrieval_is_left_out(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted("nocaps:val", models / "pretrained", tmp_path / "val.json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "CIDEr" in found
    assert "t2i_recall@1" not in found


def test_judgements_as_the_official_program_reads_them(models: Path, tmp_path: Path, root: Path) -> None:
    """nlvr2/eval/metrics.py splits each line at its comma and compares with the label in lower case."""
    assert submitted("nlvr2:dev", models / "nlvr", tmp_path / "dev.csv") == 0
    with open(tmp_path / "dev.csv", newline="") as file:
        rows = list(csv.reader(file))
    gold = [json.loads(line) for line in (root / "nlvr2" / "dev.json").read_text().splitlines()]
    assert sorted(row[0] for row in rows) == sorted(one["identifier"] for one in gold)
    assert all(len(row) == 2 and row[1] in ("True", "False") for row in rows)


def test_statements_without_labels_are_judged_and_not_measured(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"identifier": f"test1-10-{pair}-0", "sentence": "A dog."} for pair in (0, 1)]
    miniature.write(miniature.nlvr2(tmp_path) / "test1.json", rows, lines=True)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    assert submitted("nlvr2:test1", models / "nlvr", tmp_path / "test1.csv") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"num_unanswered": 2.0}
    assert "2 statements without labels in the data: predictions only" in printed.err
    lines = (tmp_path / "test1.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["test1-10-0-0", "test1-10-1-0"]


def test_rows_that_name_no_identifier_cannot_be_submitted(
    models: Path, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    miniature.nlvr2(tmp_path)
    for path in (tmp_path / "nlvr2").glob("*.json"):
        path.unlink()
    names = [f"dev/dev-10-0-img{side}.png" for side in (0, 1)]
    miniature.write(tmp_path / "nlvr2" / "nlvr_dev.json", [{"images": names, "sentence": "a dog", "label": "True"}])
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    assert submitted("nlvr2:dev", models / "nlvr", tmp_path / "dev.csv") == 2
    assert "a statement has no identifier, by which the server would know it" in capsys.readouterr().err
    assert not (tmp_path / "dev.csv").exists()


@pytest.mark.parametrize(
    ("ids", "expected", "form", "message"),
    [
        (["7", "7"], ["7"], "coco", "image 7 is answered twice; the submission needs every image once"),
        (["7"], ["7", "9"], "nocaps", "needs all 2 images, and 1 have no prediction, the first 9"),
        (["x7"], ["x7"], "coco", "the image_id 'x7' is not an integer"),
        (["dev-1-0-0"], ["dev-1-0-0"] * 2, "nlvr", "the data have statement 'dev-1-0-0' twice"),
        ([""], [""], "nlvr", "a statement has no identifier"),
    ],
)
def test_they_are_whole_or_refused(
    ids: list[str], expected: list[str], form: Any, message: str, tmp_path: Path
) -> None:
    records = [{"image_id": one, "identifier": one, "caption": "a dog", "prediction": True} for one in ids]
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "out", form, records, expected)
    assert not (tmp_path / "out").exists()


def test_a_broken_image_keeps_captions_from_being_submitted(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (miniature.nocaps(tmp_path) / "images" / "val" / "0001ab.jpg").write_bytes(b"no image")
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    assert submitted("nocaps:val", models / "captioner", tmp_path / "val.json") == 2
    assert "needs all 3 images, and 1 have no prediction, the first 1" in capsys.readouterr().err
    assert not (tmp_path / "val.json").exists()


def test_names_and_models_that_do_not_fit_are_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submitted("coco:test", models / "captioner", tmp_path / "mine.json") == 2
    assert "takes captions_SPLIT_NAME_results.json, not mine.json" in capsys.readouterr().err
    assert submitted("nlvr2:dev", models / "captioner", tmp_path / "dev.csv") == 2
    assert "needs a model that judges pairs of images" in capsys.readouterr().err
    assert submitted("nocaps:val", models / "nlvr", tmp_path / "val.json") == 2
    assert "needs a model that writes captions" in capsys.readouterr().err


def test_the_number_of_an_image() -> None:
    named = Sample(key="a", images=(Path("val2014/COCO_val2014_000000000042.jpg"),), image_id="a")
    assert image_number(named) == "000000000042"
    assert image_number(Sample(key="a", images=(b"",), image_id="17")) == "17"
    with pytest.raises(UserError, match="has no number as the server's image_id"):
        image_number(Sample(key="photo", images=(b"",), image_id="photo"))
