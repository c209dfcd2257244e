"""Images in folders of classes: their names, what is refused, the accuracy that `evaluate` and `classify` give."""

from __future__ import annotations

import json
from pathlib import Path

import miniature
import pytest
import small
from kept_results import kept_predictions

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.core.text import rounded
from openblip.data.sample import BrokenSample
from openblip.data.sources.classes import ClassFolderSource, read_class_names
from openblip.data.sources.open import open_source
from openblip.tasks.classification import class_names
from openblip.tasks.config import as_sources
from openblip.tasks.load import load
from openblip.tasks.registry import task_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes with three images each, one of them a folder deeper, and an image of no class."""
    folder = tmp_path / "photos"
    for name, count in (("red_bus", 3), ("dogs", 3)):
        for number in range(count):
            place = folder / name / ("more" if number == 2 else "") / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            small.make_image(number + len(name)).save(place)
    small.make_image(99).save(folder / "loose.png")
    return folder


def test_folders_are_classes(photos: Path) -> None:
    source = open_source(f"{photos}?classes=folder")
    assert isinstance(source, ClassFolderSource)
    assert source.class_names == {"dogs": "dogs", "red_bus": "red bus"}
    (loose,) = (index for index, name in enumerate(source._names.to_pylist()) if name == "loose.png")
    with pytest.raises(BrokenSample, match="it lies in no folder of a class"):
        source[loose]
    samples = [source[index] for index in range(len(source)) if index != loose]
    texts = {sample.key: sample.texts for sample in samples}
    assert len(texts) == 6
    assert texts["red_bus/more/2.png"] == ("red bus",)
    assert texts["dogs/0.png"] == ("dogs",)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "dogs\tdog, hound\nred_bus\tred bus\ncats\tcat\n",
            {"dogs": "dog, hound", "red_bus": "red bus", "cats": "cat"},
        ),
        ("dogs dog\nred_bus red bus\n", {"dogs": "dog", "red_bus": "red bus"}),
        ("dog\nred bus\n", {"dogs": "dog", "red_bus": "red bus"}),  # in sorted order
    ],
)
def test_files_of_names(text: str, names: dict[str, str], photos: Path) -> None:
    (photos.parent / "names.txt").write_text(text)
    source = open_source(f"{photos}?classes=../names.txt")
    assert isinstance(source, ClassFolderSource)
    assert source.class_names == names
    assert class_names(as_sources([f"{photos}?classes=../names.txt"])) == list(names.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dogs\tanimal\nred_bus\tanimal\n", 'have one name \\(dogs "animal", red_bus "animal"\\)'),
        ("dogs\tdog\ndogs\thound\nred_bus\tbus\n", "names the folder dogs twice"),
        ("dogs\tdog\n", "has no name for 1 folders of .*: red_bus"),
        ("a\nb\nc\n", "has 3 lines for 2 folders"),
        ("dogs\tdog\nred_bus\t\n", "gives no class for red_bus"),
    ],
)
def test_names_that_do_not_fit_are_refused(text: str, message: str, photos: Path) -> None:
    (photos.parent / "names.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_source(f"{photos}?classes=../names.txt")


def test_what_has_no_classes_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read as names of classes: No such file"):
        open_source(f"{photos}?classes=../gone.txt")
    with pytest.raises(UserError, match="holds no folder with images"):
        open_source(f"{photos / 'dogs' / 'more'}?classes=folder")
    table = miniature.write(tmp_path / "captions.jsonl", [{"image": "a.png", "caption": "a dog"}], lines=True)
    with pytest.raises(UserError, match='does not read the setting "classes"'):
        open_source(f"{table}?classes=folder")
    file = tmp_path / "names.txt"
    file.write_text("a\nb\n")
    with pytest.raises(UserError, match="2 lines for 3 folders"):
        read_class_names(file, ("x", "y", "z"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "blip"
    save_model(folder, StoredModel(small.model(), small.tokenizer()))
    return folder


def test_evaluate_and_classify_measure_the_same(
    model: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model), "--device", "cpu"]
    (photos / "loose.png").unlink()
    data = as_sources([f"{photos}?classes=folder"])
    assert task_of(load(model, device="cpu").adapter, data) == "classification"
    assert main(["evaluate", f"{photos}?classes=folder", *words, "--out", str(tmp_path / "out")]) == 0
    metrics = json.loads(capfd.readouterr().out)
    summary = tmp_path / "summary.json"
    more = ["--classes", "dogs,red bus", "--truth", "folder", "--summary", str(summary)]
    assert main(["classify", str(photos), *words, *more]) == 0
    told = json.loads(summary.read_text())
    assert metrics == rounded({f"accuracy_{name}": told[name] for name in ("top1", "mean_per_class")})
    rows = kept_predictions(tmp_path / "out")
    right = sum(row["classes"][0]["name"] == row["truth"] for row in rows)
    assert rounded(right / len(rows)) == metrics["accuracy_top1"]


def test_imagenet_by_its_name(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = miniature.imagenet(tmp_path)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    words = ["--model", str(model), "--device", "cpu"]
    assert main(["evaluate", "imagenet:val", *words]) == 0
    metrics = json.loads(capfd.readouterr().out)
    assert main(["classify", "imagenet:val", *words, "--summary", str(tmp_path / "summary.json")]) == 0
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["images"] == 12
    assert rounded(told["top1"]) == metrics["accuracy_top1"]
    assert len(told["classes"]) == 4, "goldfish is a class without an image"
    monkeypatch.delenv(DATA_ROOT)
    assert main(["classify", "imagenet:val", *words, "--data-root", str(tmp_path)]) == 0
    (home / "classes.txt").unlink()
    assert main(["evaluate", "imagenet:val", *words]) == 2
    assert "classes.txt is not there" in capfd.readouterr().err
    assert main(["classify", "photos", *words]) == 2
