"""Zero-shot classification: by hand, in any batch, with both families; the command and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.classify import read_classes
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.data.sinks import read_rows
from openblip.metrics.classification import Accuracy
from openblip.models.blip import Blip
from openblip.models.dual import BlipDual, DualConfig
from openblip.tasks.predictor import Predictor

CLASSES = ("red bus", "Cat", "dogs", "long chair", "birds", "road")
TEMPLATES = ("a {} on a road", "two {}")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the same sums of float32 in another order"""


@pytest.fixture(scope="module")
def blip() -> Blip:
    return small.model()


@pytest.fixture(scope="module")
def predictor(blip: Blip) -> Predictor:
    return small.predictor(blip, small.tokenizer(), batch_size=3)


IMAGES = [small.make_image(number) for number in range(7)]


def test_by_itc_templates_are_averaged_as_embeddings(predictor: Predictor, blip: Blip) -> None:
    found = predictor.classify(IMAGES, CLASSES, templates=TEMPLATES)
    images = predictor.embed_images(IMAGES)
    texts = [predictor.embed_texts([t.replace("{}", name) for t in TEMPLATES]).mean(0) for name in CLASSES]
    cosines = images @ torch.stack([F.normalize(text, dim=-1) for text in texts]).T
    shares = (cosines / blip.temperature.detach()).softmax(1)
    for row, expected, share in zip(found, cosines, shares, strict=True):
        order = expected.argsort(descending=True)
        assert [one.name for one in row] == [CLASSES[k] for k in order]
        torch.testing.assert_close(torch.tensor([one.score for one in row]), expected[order], **CLOSE)
        torch.testing.assert_close(torch.tensor([one.probability for one in row]), share[order], **CLOSE)
        assert sum(one.probability for one in row) == pytest.approx(1, abs=1e-5)


def test_by_itm_templates_are_averaged_as_logits(predictor: Predictor) -> None:
    found = predictor.classify(IMAGES[:4], CLASSES, templates=TEMPLATES, by="itm")
    for image, row in zip(IMAGES, found, strict=False):
        logits = []
        for name in CLASSES:
            matches = predictor.match(image, [t.replace("{}", name) for t in TEMPLATES])[0]
            chances = torch.tensor([one.itm_probability for one in matches], dtype=torch.float64)
            logits.append(float(torch.logit(chances).mean()))
        expected = dict(zip(CLASSES, logits, strict=True))
        shares = dict(zip(CLASSES, torch.tensor(logits).softmax(0).tolist(), strict=True))
        for one in row:
            assert one.score == pytest.approx(expected[one.name], abs=1e-3)  # of probabilities near 0 and 1
            assert one.probability == pytest.approx(shares[one.name], abs=1e-3)
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True)


@pytest.mark.parametrize("by", ["itc", "itm"])
def test_an_image_alone_has_the_same_classes(predictor: Predictor, by: str) -> None:
    for image, row in zip(IMAGES, predictor.classify(IMAGES, CLASSES, by=by, top=3), strict=True):  # type: ignore[arg-type]
        (alone,) = predictor.classify(image, CLASSES, by=by)  # type: ignore[arg-type]
        assert len(row) == 3
        assert [one.name for one in row] == [one.name for one in alone[:3]]
        for one, own in zip(row, alone, strict=False):
            assert one.score == pytest.approx(own.score, abs=1e-4)
            assert one.probability == pytest.approx(own.probability, abs=1e-4)


def test_two_towers_have_a_scale_of_their_own(blip: Blip) -> None:
    torch.manual_seed(0)
    model = BlipDual(DualConfig(vision=blip.config.vision, text=blip.config.text, embed_dim=16)).eval()
    predictor = small.predictor(model, small.tokenizer())
    (row,) = predictor.classify(IMAGES[0], CLASSES)
    shares = (torch.tensor([one.score for one in row]) * model.logit_scale.detach().exp()).softmax(0)
    torch.testing.assert_close(torch.tensor([one.probability for one in row]), shares, **CLOSE)
    with pytest.raises(UserError, match="two-tower BLIP model"):
        predictor.classify(IMAGES[0], CLASSES, by="itm")


def test_what_is_refused(predictor: Predictor) -> None:
    for classes, options, message in (
        (["cat"], {}, "at least two classes"),
        (["cat", "dogs", "Cat!"], {}, r'twice, or are the same text to the model: "cat", "Cat!"'),
        (["cat", "!"], {}, 'the class "!" holds no word'),
        (["cat", " "], {"by": "itm"}, 'the class " " holds no word'),
        (["cat", "dogs"], {"templates": ["a photo"]}, r'"a photo" has no \{\} in place of the class'),
        (["cat", "dogs"], {"templates": []}, "there is no template"),
        (["cat", "犬"], {"templates": ["{}"]}, 'vocabulary has no word of "犬"'),
        (["cat", "dogs"], {"by": "itx"}, r'not "itx" \(did you mean "it'),
    ):
        with pytest.raises(UserError, match=message):
            predictor.classify(IMAGES[0], classes, **options)  # type: ignore[arg-type]
    vqa = small.predictor(small.vqa_model(), small.vqa_tokenizer())
    with pytest.raises(UserError, match="embeddings need a BLIP pre-training or retrieval model"):
        vqa.classify(IMAGES[0], CLASSES)


def test_accuracy_by_hand() -> None:
    accuracy = Accuracy(list("abcdef"))
    accuracy.add("a", list("abcde"))
    accuracy.add("a", list("bcdea"))
    accuracy.add("b", list("cdefb"))
    accuracy.add("b", list("cdefa"))
    accuracy.add("c", list("cabde"))
    figures = accuracy.figures()
    assert (figures["images"], figures["top1"], figures["top5"]) == (5, 2 / 5, 4 / 5)
    assert figures["mean_per_class"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert figures["per_class"] == {
        "a": {"images": 2, "top1": 0.5},
        "b": {"images": 2, "top1": 0.0},
        "c": {"images": 1, "top1": 1.0},
    }
    few = Accuracy(["a", "b"])
    few.add("a", ["b", "a"])
    assert "top5" not in few.figures()


def test_lists_of_classes(tmp_path: Path) -> None:
    assert read_classes("cat, red bus,") == {"cat": "cat", "red bus": "red bus"}
    (tmp_path / "classes.txt").write_text("n01\ttench\nn02\tgoldfish, red\n\nother\n")
    expected = {"n01": "tench", "n02": "goldfish, red", "other": "other"}
    assert read_classes(str(tmp_path / "classes.txt")) == expected
    for text, message in (
        ("cat,dog,cat,dog", '--classes names a class twice: "cat", "dog"'),
        ("cat", "there is no file cat"),
        ("cat,", "at least two classes"),
    ):
        with pytest.raises(UserError, match=message):
            read_classes(text)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    save_model(folder / "model", StoredModel(small.model(), small.tokenizer()))
    for number, name in enumerate(("n1", "n1", "Red_Bus", "Red_Bus", "elsewhere")):
        (folder / "photos" / name / "train").mkdir(parents=True, exist_ok=True)
        small.make_image(number).save(folder / "photos" / name / "train" / f"{number}.png")
    return folder


COMMAND = ("classify", "photos", "--model", "model", "--device", "cpu", "--dtype", "float32")


def test_the_command_measures_folders(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "classes.txt").write_text("n1\tdogs\nred bus\ncat\n")
    more = ("--classes", "classes.txt", "--truth", "folder", "--template", "two {}", "--template", "a {}")
    assert main([*COMMAND, *more, "--top", "2", "--summary", "accuracy.json"]) == 0
    said = capfd.readouterr()
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [record["truth"] for record in records] == ["red bus", "red bus", None, "dogs", "dogs"]
    model = small.predictor(small.model(), small.tokenizer())
    names = ["dogs", "red bus", "cat"]
    for record in records:
        (expected,) = model.classify(record["image"], names, templates=["two {}", "a {}"])
        assert [one["name"] for one in record["classes"]] == [one.name for one in expected[:2]]
        found = [one["probability"] for one in record["classes"]]
        np.testing.assert_allclose(found, [one.probability for one in expected[:2]], atol=1e-4)
    right = [r["classes"][0]["name"] == r["truth"] for r in records if r["truth"]]
    figures = json.loads((here / "accuracy.json").read_text())
    assert figures["top1"] == sum(right) / 4
    assert (figures["images"], figures["without_truth"], figures["classes"]) == (4, 1, names)
    assert {name: one["images"] for name, one in figures["per_class"].items()} == {"dogs": 2, "red bus": 2}
    assert f"top-1 {sum(right) / 4:.1%}" in said.err
    assert "over 4 images, 1 in no folder of a class left out" in said.err
    (here / "photos" / "n1" / "train" / "0.png").write_text("no image")
    assert main([*COMMAND, *more, "--out", "table.parquet"]) == 1
    rows = read_rows("table.parquet")
    assert [row["image"] for row in rows] == [r["image"] for r in records if not r["image"].endswith("0.png")]
    assert rows[0]["classes"][0]["name"] == records[0]["classes"][0]["name"]
    assert "skipped photos/n1/train/0.png (not-an-image)" in capfd.readouterr().err


def test_mistakes_are_one_sentence(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--classes", "cat,dogs,cat"): '--classes names a class twice: "cat"',
        ("--classes", "none.txt"): "there is no file none.txt",
        ("--classes", "cat,dogs", "--truth", "folder"): "no image lies in a folder that is called as a class; they",
        ("--classes", "cat,dogs", "--summary", "a.json"): "needs --truth folder",
        ("--classes", "cat,dogs\udcff"): "is not UTF-8 at character",
        ("--classes", "cat,dogs", "--template", "a cat"): "has no {} in place of the class",
        ("--classes", "cat,dogs", "--top", "0"): "--top must be at least 1",
        (): "needs --classes",
    }
    for more, message in cases.items():
        assert main([*COMMAND, *more]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line


def test_without_an_image_of_a_class_there_is_no_accuracy(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for image in (here / "photos" / "n1").rglob("*.png"):
        image.write_text("no image")
    (here / "classes.txt").write_text("n1\tdogs\ncat\n")
    more = ("--classes", "classes.txt", "--truth", "folder", "--summary", "accuracy.json")
    assert main([*COMMAND, *more]) == 1
    said = capfd.readouterr().err
    assert "no accuracy: no image in a folder of a class can be used" in said
    assert "top-1" not in said
    assert not (here / "accuracy.json").exists()
