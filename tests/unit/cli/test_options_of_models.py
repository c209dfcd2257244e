"""Options of every command that opens a model: the tokenizer by name, attention heads, a resolution that fits."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.cli.entry import COMMANDS, main
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner as our folder, as transformers' without a tokenizer, and as the original's without its heads."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = TextTokenizer.train(["a red bus", "two dogs"] * 3, vocab_size=50)
    tokenizer.save(folder / "words")
    torch.manual_seed(0)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        width=32,
        depth=1,
        num_heads=4,
        inner_width=64,
        max_positions=64,
        memory_width=32,
    )
    vision = VisionConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2)
    stored = StoredModel(Blip(BlipConfig(vision=vision, text=text, embed_dim=8, encoder=False)).eval(), tokenizer)
    save_model(folder / "own", StoredModel(stored.model, tokenizer))
    convert_model(stored, folder / "theirs", to="transformers")
    for file in (folder / "theirs").glob("token*"):
        file.unlink()
    convert_model(stored, folder / "a.pth", to="blip")
    torch.save({"model": torch.load(folder / "a.pth", weights_only=True)["model"]}, folder / "b.pth")
    images = folder / "images"
    images.mkdir()
    Image.new("RGB", (40, 40), (200, 30, 30)).save(images / "1.png")
    (images / "1.txt").write_bytes(b"\xef\xbb\xbfa red bus\r\n")
    return folder


def test_every_command_with_a_model_takes_a_tokenizer() -> None:
    without = {
        name
        for name, command in COMMANDS.items()
        if (model := inspect.signature(command).parameters.get("model")) is not None
        and model.default is model.empty
        and "tokenizer" not in inspect.signature(command).parameters
    }
    assert not without


def test_every_flag_is_off_by_default() -> None:
    """One that is on would be called --no-NAME, which the command line does not know."""
    parameters = [(name, p) for name, one in COMMANDS.items() for p in inspect.signature(one).parameters.values()]
    assert not [(name, p.name) for name, p in parameters if p.default is True]


def test_a_tokenizer_can_be_named(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    theirs, words = str(place / "theirs"), str(place / "words")
    image = str(place / "images" / "1.png")
    for command in (["caption", image, "--model", theirs], ["info", theirs]):
        assert main(command) == 2
        assert "--tokenizer FOLDER" in capfd.readouterr().err
        assert main([*command, "--tokenizer", words]) == 0
    capfilt = ["capfilt", str(place / "images"), str(tmp_path / "clean"), "--captioner", theirs, "--filter", theirs]
    assert main(capfilt) == 2
    assert "--tokenizer FOLDER" in capfd.readouterr().err
    assert main([*capfilt, "--tokenizer", words]) == 2
    assert "matching needs" in capfd.readouterr().err  # it is open, and only writes
    target = tmp_path / "ours"
    assert main(["convert", theirs, str(target), "--to", "openblip", "--tokenizer", words]) == 0
    assert open_model(target).tokenizer.vocab_size == TextTokenizer.load(words).vocab_size


def test_heads_can_be_named(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = ["--tokenizer", str(place / "words")]
    assert main(["info", str(place / "b.pth"), *told]) == 2
    assert "--heads 4" in capfd.readouterr().err
    target = tmp_path / "ours"
    command = ["convert", str(place / "b.pth"), str(target), "--to", "openblip", *told, "--heads", "2", "4"]
    assert main(command) == 0
    config = open_model(target).blip.config
    assert (config.vision.num_heads, config.text.num_heads) == (2, 4)


def test_a_resolution_that_patches_do_not_fill(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images, model = str(place / "images"), str(place / "own")
    command = ["train", "blip-caption", images, "--model", model, "--out", str(tmp_path / "run")]
    assert main([*command, "--set", "image_size=100", "--set", "num_workers=0"]) == 2
    error = capfd.readouterr().err
    assert "image size 100 is not a multiple of the patch size 8: take 96 or 104" in error
    assert "Traceback" not in error


def test_names_that_are_not_utf8_are_written(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", image)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    out = tmp_path / "out.jsonl"
    done = main(["caption", os.fsdecode(image), "--model", str(place / "own"), "--out", str(out)])
    assert done == 0, capfd.readouterr().err
    assert os.fsencode(json.loads(out.read_bytes())["image"]) == image
