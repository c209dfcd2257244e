"""`openblip evaluate --out`: whole published splits, what is partial and why, and the tables of several."""

from __future__ import annotations

import json
from pathlib import Path

import miniature
import pytest
import torch

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.cli.evaluated import default_samples
from openblip.core.text import read_json
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    words = TextTokenizer.train(["caption of original"] * 3, vocab_size=60)
    sizes = blip_config("nano", vocab_size=words.vocab_size, image_size=32)
    save_model(tmp_path / "blip", StoredModel(Blip(sizes), words))
    return str(tmp_path / "blip")


def test_a_published_split_is_measured_whole(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENBLIP_DATA", "")
    root = miniature.coco(tmp_path).parent
    named = [root / "coco" / "annotations" / f"coco_karpathy_{split}.json" for split in ("val", "test")]
    miniature.write(named[0], [*read_json(named[0]), *read_json(named[1])])  # retrieval is of several images
    out = tmp_path / "results"
    command = ["evaluate", "coco:val", "--model", model, "--out", str(out), "--data-root", str(root)]
    command += ["--device", "cpu", "--beams", "1", "--max-new-tokens", "4"]
    assert main(command) == 0
    (file,) = out.glob("*.json")
    whole = json.loads(file.read_text())
    assert (whole["dataset"], whole["split"], whole["official"], whole["partial"]) == ("coco", "val", True, "")
    assert (whole["samples"], whole["limit"]) == (2, None)
    assert whole["metrics"]["i2t_recall_itm@1"]["value"] in (0.0, 0.5, 1.0)
    assert len(file.with_suffix(".predictions.jsonl").read_text().splitlines()) == 2
    before = file.read_bytes()
    assert main([*command, "--samples", "1"]) == 0
    (other,) = set(out.glob("*.json")) - {file}
    part = json.loads(other.read_text())
    assert (part["official"], part["partial"]) == (False, "the first 1 of 2 samples")
    assert part["weights"] == whole["weights"]
    assert file.read_bytes() == before
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "coco:val, captioning and retrieval" in shown
    told = " ".join(shown.split())
    assert "Not comparable with published figures:" in told
    assert "(the first 1 of 2 samples)." in told
    assert (out / "report.html").is_file()


def test_images_that_are_listed_twice_or_have_no_caption_make_no_official_figures(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    file = miniature.coco(tmp_path) / "annotations" / "captions_val2014.json"
    content = read_json(file)
    described = [row for row in content["annotations"] if row["image_id"] != 73]
    miniature.write(file, {"images": [*content["images"], content["images"][0]], "annotations": described})
    command = ["evaluate", "coco:val2014", "--model", model, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--beams", "1", "--max-new-tokens", "4"]) == 1
    (result,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json"))
    assert (result["official"], result["partial"]) == (False, "2 of 4 samples could not be used")
    assert [(one["cause"], one["detail"]) for one in result["left_out"]] == [
        ("bad-row", "image 42 is listed already"),
        ("no-text", "no annotation has its image_id, 73"),
    ]
    assert "1 bad-row, 1 no-text" in capsys.readouterr().err


def test_a_published_dataset_of_another_task_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    miniature.coco(tmp_path)
    miniature.vqav2(tmp_path)
    miniature.nlvr2(tmp_path)
    for data, does in (("vqav2:val", "answers questions"), ("nlvr2:dev", "judges pairs of images")):
        assert main(["evaluate", data, "--model", model, "--device", "cpu"]) == 2
        is_one = f"{model} is one that matches images with texts and writes captions"
        assert capsys.readouterr().err == f"openblip: {data} needs a model that {does}; {is_one}\n"


def test_other_data_are_measured_in_part() -> None:
    assert default_samples(("photos/",)) == default_samples(("coco:test", "photos/")) == 1000
    assert default_samples(("coco:test", "nlvr2:dev")) > 10**9
