"""Every run of the papers takes two steps on small copies of its own datasets, with small models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import miniature
import pytest
import torch
from small_blip2 import PIXELS, write_language

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError
from openblip.core.text import read_json
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config
from openblip.models.configs import QFormerSettings
from openblip.recipes.papers import RUNS
from openblip.tasks.config import RunConfig, load_run_config
from openblip.tasks.training import run_training

WORDS = (
    "a train caption of original region is what this red how many thing sign dog the bright on left web text",
    "a picture of a dog",
)
QUICK = {"blip-pretrain-14m", "blip-caption-coco", "blip-nlvr2", "blip2-stage1-vit-g"}
"""the others are slow together"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small copies, with a second image in val of COCO and Flickr30k: retrieval is of several."""
    root = miniature.everything(tmp_path_factory.mktemp("published"))
    for name in ("coco/annotations/coco_karpathy", "flickr30k/annotations/flickr30k"):
        rows = [row for split in ("val", "test") for row in read_json(root / f"{name}_{split}.json")]
        miniature.write(root / f"{name}_val.json", rows)
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BLIP, and small language models."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    words = TextTokenizer.train(WORDS * 3, vocab_size=120)
    sizes = blip_config("nano", vocab_size=words.vocab_size, image_size=PIXELS)
    save_model(folder / "blip", StoredModel(Blip(sizes), words))
    write_language(folder / "decoder", "opt")
    write_language(folder / "t5", "t5")
    return folder


def small(config: RunConfig) -> RunConfig:
    """The same on few images, for two steps; settings of the task and of the data stay."""
    train = replace(config.train, max_steps=2, device="cpu", precision="float32", trackers=())
    changes: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "train": train, "text_pretrained": ""}
    if config.family == "blip2":
        sizes = QFormerSettings(num_queries=4, width=32, depth=2, num_heads=4, inner_width=64)
        changes |= {"qformer": sizes, "vocab_size": 200}
        if config.vision.image_size is not None:  # more pixels than the model was trained at
            changes["vision"] = replace(config.vision, image_size=2 * PIXELS)
    return replace(config, **changes)


def started(name: str, place: Path) -> dict[str, str]:
    """The small model, or parts, that a run starts from; earlier stages are trained once."""
    kind = "t5" if "t5" in name else "decoder"
    if name.startswith("blip-"):
        return {"model": "nano" if "pretrain" in name else str(place / "blip")}
    if "stage1" in name:
        return {"vision": f"openblip:{place / 'blip'}"}
    stage1 = place / "stage1"
    if not stage1.exists():
        run_training(small(made("blip2-stage1-vit-g", place)), stage1, show=False)
    if "stage2" in name or "vqa" in name:
        return {"model": str(stage1 / "model"), "language": str(place / kind)}
    if "retrieval" in name:
        return {"model": str(stage1 / "model")}
    stage2 = place / f"stage2-{kind}"
    if not stage2.exists():
        language = "flan-t5-xl" if kind == "t5" else "opt-2.7b"
        run_training(small(made(f"blip2-stage2-{language}", place)), stage2, show=False)
    return {"model": str(stage2 / "model")}


def made(name: str, place: Path) -> RunConfig:
    return RUNS[name].config(**started(name, place))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_two_steps(name: str, root: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_DATA", str(root))
    config = small(made(name, place))
    assert [source.path for source in config.sources] == [spec.partition("?")[0] for spec in RUNS[name].data]
    assert from_dict(RunConfig, to_dict(config)) == config
    result = run_training(config, tmp_path / "run", show=False)
    assert result.steps == 2
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    kept = load_run_config(tmp_path / "run" / "config.json")
    assert (kept.task, kept.sources, kept.validation) == (config.task, config.sources, config.validation)


def test_the_command_finds_the_datasets(
    root: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBLIP_DATA", "")
    command = ["train", "blip-nlvr2", "--model", str(place / "blip"), "--out", str(tmp_path / "run")]
    command += ["--steps", "2", *("--set", "batch_size=2"), *("--set", "num_workers=0")]
    command += [*("--set", "train.precision=float32"), *("--set", "train.device=cpu")]
    assert main(command) == 2
    assert "set --data-root or OPENBLIP_DATA" in capsys.readouterr().err
    assert main([*command, "--data-root", str(place)]) == 2
    message = capsys.readouterr().err
    assert "nlvr2:train is not complete" in message
    assert "get it from" in message
    assert not (tmp_path / "run").exists()
    assert main([*command, "--data-root", str(root)]) == 0
    assert load_run_config(tmp_path / "run" / "config.json").sources[0].path == "nlvr2:train"


def test_other_data_take_the_place_of_all_of_its_own() -> None:
    config = RUNS["blip-caption-coco"].config(("photos/",), model="m")
    assert [source.path for source in config.sources] == ["photos/"]
    assert config.validation == ()
    with pytest.raises(UserError, match="needs --model"):
        RUNS["blip-caption-coco"].config()
