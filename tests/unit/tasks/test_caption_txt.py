"""`openblip caption --write txt`: a text beside each image, resumed where it stopped, refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import small

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core import files
from openblip.data import image_inputs
from openblip.data.sources import open_source
from openblip.tasks.load import load


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captions")
    save_model(folder / "model", StoredModel(small.model(), small.tokenizer()))
    (folder / "photos" / "sub").mkdir(parents=True)
    for number in range(6):
        small.make_image(number).save(folder / "photos" / ("sub" * (number % 2)) / f"{number}.png")
    return folder


COMMAND = ("caption", "photos", "--model", "model", "--device", "cpu", "--dtype", "float32", "--batch-size", "2")


def run(*more: str) -> int:
    return main([*COMMAND, "--write", "txt", *more])


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_the_texts_are_the_models_captions_and_are_read_again(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--prefix", "tok, ", "--num-captions", "2") == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    predictor = load(str(here / "model"), device="cpu", dtype="float32", batch_size=1)
    assert len(records) == 6
    for record in records:
        own = [one["text"] for one in record["captions"]]
        assert record["file"] == record["image"].replace(".png", ".txt")
        assert Path(record["file"]).read_text() == "".join(f"tok, {text}\n" for text in own)
        alone = predictor.caption(record["image"])[0][0]
        assert own[0] == alone.text
    source = open_source("photos")
    assert sorted(source[index].texts[0] for index in range(6)) == sorted(
        f"tok, {record['captions'][0]['text']}" for record in records
    )


def test_a_stopped_command_resumes_and_leaves_what_is_there(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "whole") == 0
    assert not texts(here / "photos"), "with --out nothing is put beside the images"
    written: list[Path] = []
    write = files.write_bytes

    def stopped(path: Path, data: bytes) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", stopped)
        assert run() == 130
    assert "the same command" in capfd.readouterr().err
    times = {path: path.stat().st_mtime_ns for path in written}
    done = sorted(times, key=str)
    done[0].write_text("mine\n")  # what a person has corrected since
    times[done[0]] = done[0].stat().st_mtime_ns
    decoded: list[str] = []
    decode = image_inputs.ImageInput.decode

    def noted(image: image_inputs.ImageInput, min_side: int | None = None) -> object:
        decoded.append(image.name)
        return decode(image, min_side)

    monkeypatch.setattr(image_inputs.ImageInput, "decode", noted)
    capfd.readouterr()
    assert run() == 0
    assert "3 of 6 images have a text already" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not {str(path.with_suffix(".png")) for path in times}.intersection(decoded)
    assert texts(here / "photos") == texts(here / "whole") | {str(done[0].relative_to("photos")): "mine\n"}
    shutil.rmtree(here / "model")  # nothing is left to caption: no model is opened
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    assert run() == 0
    assert "6 of 6 images have a text already" in capfd.readouterr().err


def test_a_broken_image_is_told_and_the_others_are_written(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "photos" / "0.png").write_text("no image")
    assert run() == 1
    assert "skipped photos/0.png (not-an-image)" in capfd.readouterr().err
    assert len(texts(here / "photos")) == 5


def test_mistakes_are_one_sentence(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "texts").write_text("a file")
    cases = {
        ("--prefix", "x"): "are for text files: add --write txt",
        ("--write", "txt", "--extension", ".png"): "a text must not end in .png",
        ("--write", "txt", "--out", "texts"): "texts is a file, and with --write txt the captions go into a folder",
        ("--write", "txt", "--existing", "never"): "never",
        ("--write", "text"): "text",
    }
    for more, message in cases.items():
        assert main([*COMMAND, *more]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line


def test_a_folder_with_the_name_of_a_text_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "photos" / "0.txt").mkdir()
    for existing in ("skip", "overwrite", "append"):
        assert run("--existing", existing) == 2
        assert "photos/0.txt is a folder, where the text of photos/0.png would be" in capfd.readouterr().err
