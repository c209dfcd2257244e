"""`info` and `convert`: what a model is, and a model in every format and back."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from job_commands import CommandServer
from job_world import World, same_numbers

from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig

pytestmark = pytest.mark.slow

EXACT = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training model in the sizes that all three formats have (patches by one convolution)."""
    tokenizer = TextTokenizer.train(["a red circle", "a blue square and two stars"] * 3, vocab_size=80)
    config = BlipConfig(
        vision=VisionConfig(image_size=32, width=64, depth=2, num_heads=1),  # the original tells 64 for each head
        text=TextConfig(
            vocab_size=tokenizer.vocab_size, width=64, depth=2, num_heads=1, inner_width=128, memory_width=64,
            max_positions=64,
        ),
        embed_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published") / "model"
    save_model(folder, StoredModel(Blip(config), tokenizer, {"task": "pretrain"}))
    return folder


def same(first: Path, second: Path) -> bool:
    """Whether two models are equal to the bit."""
    ours, theirs = (open_model(path).model.state_dict() for path in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_info_says_what_a_model_is(openblip: CommandServer, model: Path, published: Path) -> None:
    info = json.loads(openblip("info", model).out)
    assert info["is"].startswith("a BLIP pre-training model (vision 64 wide, 2 deep, 32 x 32 px)")
    assert info["can"] == ["caption", "match", "embed", "retrieve", "classify", "score", "explain"]
    parts = info["parameters_by_part"]
    assert sum(parts.values()) == info["parameters"]
    assert 0 < parts["vision tower"] < info["parameters"]
    assert parts["vision tower"] + parts["text"] < info["parameters"], "projections and heads are the rest"
    assert info["model"]["vision"]["width"] == 64
    assert info["ignored_keys"] == []
    terminal = {"before": "import openblip.cli.models as models; models.person = lambda: True"}
    table = openblip("info", published, **terminal).out
    assert "pre-training model" in table
    assert f"{sum(p.numel() for p in open_model(published).model.parameters()):,}" in table


def test_there_and_back_in_every_format(
    openblip: CommandServer, world: World, published: Path, tmp_path: Path
) -> None:
    image = world.images[0]
    file = tmp_path / "original.pth"
    assert f"is in {file}" in openblip("convert", published, file, "--to", "blip").out
    words = ("--model", published, *EXACT)
    caption = openblip("caption", image, *words).records
    match = openblip("match", image, "--text", "a red circle", *words).records
    for part, expected in (("caption", caption), ("match", match)):
        theirs, ours = tmp_path / f"{part}-theirs", tmp_path / f"{part}-ours"
        openblip("convert", published, theirs, "--to", "transformers", "--part", part)
        assert (theirs / "preprocessor_config.json").exists() or (theirs / "processor_config.json").exists()
        openblip("convert", theirs, ours, "--to", "openblip")
        assert same(theirs, ours)
        text = ("--text", "a red circle") if part == "match" else ()
        for converted in (theirs, ours):
            same_numbers(openblip(part, image, *text, "--model", converted, *EXACT).records, expected)
    info = json.loads(openblip("info", tmp_path / "caption-theirs").out)
    assert info["can"] == ["caption", "score", "explain"]
    assert info["info"]["source_format"] == "transformers"


def test_what_cannot_be_converted(openblip: CommandServer, model: Path, published: Path, tmp_path: Path) -> None:
    refuse = openblip.refuse
    both = refuse("convert", published, tmp_path / "x", "--to", "transformers")
    assert "choose with --part caption or --part match" in both
    assert "one file: name it" in refuse("convert", published, tmp_path / "x", "--to", "blip")
    assert 'stem = "conv"' in refuse("convert", model, tmp_path / "x", "--to", "transformers", "--part", "caption")
    assert "exists already" in refuse("convert", published, tmp_path, "--to", "openblip")
    assert 'did you mean "--to"' in refuse("convert", published, tmp_path / "x", "--ot", "blip")
    assert not list(tmp_path.iterdir())


class Code:
    """Unpickled, it would write a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (Path("ran.txt"), "code ran")


def test_files_that_are_no_blip(openblip: CommandServer, published: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    openblip("convert", published, whole, "--to", "blip")
    data = whole.read_bytes()
    (tmp_path / "half.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"model": Code()}))
    torch.save({"model": {"weights": torch.zeros(2), "run": Code()}}, tmp_path / "code2.pth")
    torch.save({"vit.embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "clip.pth")
    state = torch.load(whole, weights_only=True)["model"]
    torch.save({key: value for key, value in state.items() if key != "itm_head.bias"}, tmp_path / "lacks.pth")
    cases = {
        "half.pth": "damaged, cut short, or no checkpoint",
        "empty.pth": "is no checkpoint: it is empty",
        "code.pth": "it could run code",
        "code2.pth": "it could run code",
        "clip.pth": "it looks like a CLIP model",
        "lacks.pth": "itm_head.bias",
    }
    for name, message in cases.items():
        assert message in openblip.refuse("info", tmp_path / name, cwd=tmp_path), name
    assert not (tmp_path / "ran.txt").exists()
