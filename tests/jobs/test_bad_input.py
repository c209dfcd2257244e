"""What a user may get wrong at the command line: one clear sentence, an exit code that is not 0, nothing lost."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from job_commands import CommandServer
from job_world import NANO, SMALL, TRAIN, World
from PIL import Image

pytestmark = pytest.mark.slow

UNUSUAL = ("cmyk.jpg", "deep.png", "moving.gif", "palette.png", "turned.jpg")
"""of four inks, of 16 bits, animated, transparent in its palette, to be turned upright"""
PRETRAIN = (*NANO, *SMALL, "--steps", 2, "--out", "run")


@pytest.fixture
def photos(world: World, tmp_path: Path) -> Path:
    """A folder of 12 good images with .txt beside them, to spoil."""
    return world.as_folder(tmp_path / "photos", 12)


def spoil(photos: Path) -> dict[str, str]:
    """Add four broken images and some unusual ones, and return what is wrong with the broken."""
    good = sorted(photos.glob("*.png"))
    data = good[0].read_bytes()
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(photos / "cut.jpg")
    jpeg = (photos / "cut.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (photos / "zero.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not an image")
    size = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + data[24:29]  # another width and height
    (photos / "huge.png").write_bytes(data[:12] + size + zlib.crc32(size).to_bytes(4, "big") + data[33:])
    Image.new("CMYK", (40, 40), (90, 10, 60, 20)).save(photos / "cmyk.jpg")
    Image.fromarray(np.full((40, 40), 40_000, dtype=np.uint16)).save(photos / "deep.png")
    moving = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    moving[0].save(photos / "moving.gif", save_all=True, append_images=moving[1:])
    clear = Image.new("P", (40, 40), 1)
    clear.putpalette([0, 0, 0, 10, 200, 30])
    clear.save(photos / "palette.png", transparency=0)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30), "red").save(photos / "turned.jpg", exif=turned)
    return {"cut.jpg": "truncated", "zero.jpg": "empty", "text.jpg": "not-an-image", "huge.png": "too-large"}


def test_broken_images_are_skipped_counted_and_listed_in_training(openblip: CommandServer, photos: Path) -> None:
    causes = spoil(photos)
    for name in (*causes, *UNUSUAL):
        (photos / name).with_suffix(".txt").write_text("an image\n")
    shutil.copy(next(photos.glob("train*.png")), photos / "lonely.png")  # has no text
    run = photos.parent / "run"
    openblip(*TRAIN, photos, *NANO, *SMALL, "--steps", 4, "--out", run, "--set", "train.log_every=4")
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    found = {Path(line["key"]).stem: line["cause"] for line in listed}
    print(found)
    assert found == {Path(name).stem: cause for name, cause in causes.items()} | {"lonely": "no-text"}
    (record,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert record["skipped"] >= len(listed)


def test_broken_images_are_distinguished_from_good_ones_in_use(
    openblip: CommandServer, photos: Path, model: Path
) -> None:
    causes = spoil(photos)
    for command in (("caption",), ("match", "--text", "a red circle")):
        done = openblip(command[0], photos, "--model", model, *command[1:], code=1)
        assert len(done.records) == 12 + len(UNUSUAL), "those are good"
        *messages, last = done.err.splitlines()
        assert last.startswith("openblip: 17 images done, 4 skipped (")
        for name, cause in causes.items():
            assert sum(f"{name} ({cause})" in line for line in messages) == 1
    done = openblip("retrieve", "a red circle", photos, "--model", model, code=1)
    assert len(done.records) == 5
    for name, cause in causes.items():
        assert f"{name} cannot be used ({cause})" in openblip.refuse("caption", photos / name, "--model", model)


def test_nothing_to_use(openblip: CommandServer, world: World, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = world.images[0]
    refuse = openblip.refuse
    assert "no image or folder" in refuse("caption", tmp_path / "nothing.jpg", "--model", model)
    assert "there is no image in" in refuse("caption", tmp_path / "empty", "--model", model)
    assert "there is no image in" in refuse("caption", f"{tmp_path}/*.jpg", "--model", model)
    assert refuse("caption", "--model", model).startswith("name the images")
    assert "at least one text" in refuse("match", image, "--model", model)
    assert "there is no model at" in refuse("caption", image, "--model", tmp_path / "nowhere")
    assert f"did you mean {model}" in refuse("caption", image, "--model", model.parent)
    assert "openblip caption needs --model" in refuse("caption", image)
    (tmp_path / "no-texts").write_text("\n")
    assert "holds no text" in refuse("retrieve", image, "--texts", tmp_path / "no-texts", "--model", model)


def test_a_damaged_model(openblip: CommandServer, world: World, model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or cut short" in openblip.refuse("caption", world.images[0], "--model", damaged)
    weights.unlink()
    assert "was not saved whole" in openblip.refuse("caption", world.images[0], "--model", damaged)
    (damaged / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in openblip.refuse("info", damaged)


def test_what_a_model_cannot_do(openblip: CommandServer, world: World, captioner: Path) -> None:
    message = openblip.refuse("match", world.images[0], "--text", "a dog", "--model", captioner)
    assert "this is a BLIP captioning model" in message
    message = openblip.refuse("train", "blip-retrieval", world.folder, "--model", captioner, "--out", "run")
    assert "only writes captions" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thing,caption\na.png,a dog\n", 'has no image column; it has "thing", "caption"'),
        ("image,thing\na.png,a dog\n", 'has no caption column; it has "image", "thing"'),
        ("", "has no rows"),
        ("image,caption\n", "has no rows"),
    ],
)
def test_a_captions_file_without_what_is_needed(
    openblip: CommandServer, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "captions.csv").write_text(text)
    sentence = openblip.refuse(*TRAIN, "captions.csv", *PRETRAIN, cwd=tmp_path)
    assert sentence.startswith(f"captions.csv {message}")


def test_broken_rows_are_skipped_and_listed(openblip: CommandServer, world: World, tmp_path: Path) -> None:
    lines = (world.folder / "captions.jsonl").read_text().splitlines()[:12]
    bad = ('{"image": "images/cut', '{"captions": ["a"]}', '{"image": "images/gone.png", "captions": ["a"]}')
    rows = [*lines, *bad]
    (tmp_path / "broken.jsonl").write_text("\n".join(rows) + "\n")
    data = f"{tmp_path / 'broken.jsonl'}?image_root={world.folder}"
    openblip(*TRAIN, data, *NANO, *SMALL, "--steps", 4, "--out", tmp_path / "run")
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["cause"] for line in listed) == ["bad-row", "bad-row", "missing"]


def test_data_that_are_none(openblip: CommandServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for data, message in {
        "empty": "empty holds no images",
        "nowhere": "no file or folder nowhere",
        "emty": 'no file or folder emty (did you mean "empty"?)',
        "world:tarin": 'did you mean "train"',
    }.items():
        assert message in openblip.refuse(*TRAIN, data, *PRETRAIN, cwd=tmp_path)
    assert "name the data" in openblip.refuse(*TRAIN, *PRETRAIN, cwd=tmp_path)


def test_unknown_names_come_with_the_nearest(
    openblip: CommandServer, world: World, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text("[train]\nlearning_rat = 1e-3\n[[sources]]\npath = 'x'\n")
    cases = [
        (("trian", world.folder), 'did you mean "train"'),
        ((*TRAIN, world.folder, *PRETRAIN, "--stpes", 3), 'did you mean "--steps"'),
        (("train", "small-pretrian", world.folder, *PRETRAIN), 'did you mean "small-pretrain"'),
        ((*TRAIN, world.folder, *PRETRAIN, "--steps", "many"), "many"),
        (
            (*TRAIN, world.folder, *PRETRAIN, "--set", "train.learning_rat=1"),
            'did you mean "train.learning_rate"',
        ),
        (
            (*TRAIN, world.folder, *PRETRAIN, "--set", "train.learning_rate=x"),
            "must be a number, not 'x'",
        ),
        ((*TRAIN, world.folder, *PRETRAIN, "--set", "train.learning_rate"), "write NAME=VALUE"),
        ((*TRAIN, world.folder, *PRETRAIN, "--set", "model=nona"), "nona"),
        ((*TRAIN, f"{world.folder}?text_colum=alt", *PRETRAIN), 'did you mean "text_column"'),
        (("train", "settings.toml", "--out", "run"), 'did you mean "train.learning_rate"'),
        (("train", "none.toml", "--out", "run"), "no configuration file none.toml"),
        (("train", "blip-captions", world.folder, "--model", "m", "--out", "run"), "caption"),
        (("evaluate", world.folder, "--model", model, "--device", "gpu"), 'unknown device "gpu"'),
    ]
    for arguments, message in cases:
        assert message in openblip.refuse(*arguments, cwd=tmp_path)
    assert not (tmp_path / "run").exists(), "nothing is begun"


def test_what_would_overwrite_is_refused(
    openblip: CommandServer, world: World, pretrained: Path, tmp_path: Path
) -> None:
    assert "already holds a run" in openblip.refuse(*TRAIN, world.folder, *NANO, "--out", pretrained)
    assert "exists already" in openblip.refuse("world", tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in openblip.refuse(*TRAIN, world.folder, *NANO, "--out", tmp_path / "file" / "run")


def test_a_run_is_not_resumed_with_another_configuration(
    openblip: CommandServer, world: World, pretrained: Path
) -> None:
    before = (pretrained / "config.json").read_bytes()
    message = openblip.refuse(
        *("train", pretrained / "config.json", "--out", pretrained, "--resume"),
        *("--set", "train.learning_rate=1e-5"),
    )
    assert "holds a run of another configuration (train.learning_rate: 0.003 -> 1e-05)" in message
    assert (pretrained / "config.json").read_bytes() == before
