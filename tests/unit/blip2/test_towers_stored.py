"""BLIP-2 over every kind of tower on disk: by name, whole without its sources, moved, and not for transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from kinds_of_towers import make_transformers
from safetensors.torch import load_file, save_file
from small_blip2 import spread
from test_store import numbers, over, stored

from openblip.checkpoints.blip2_parts import open_tower
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import model_facts, open_model, save_model
from openblip.core.errors import UserError
from openblip.models.configs import as_tower

KINDS = [
    *("CLIP with its text", "SigLIP 2 NaFlex", "DINOv3", "ConvNeXt", "ResNet"),
    *("timm file", "timm folder", "timm CNN"),
]


def write_source(kind: str, folder: Path) -> str:
    """A tower of the kind under `folder`, and its source."""
    torch.manual_seed(0)
    folder.mkdir()
    if not kind.startswith("timm"):
        model = make_transformers(kind)
        spread(model, 0.2)
        for name, buffer in model.named_buffers():
            if "running" in name:  # BatchNorm's, as training leaves them
                buffer.uniform_(0.5, 1.5)
        model.save_pretrained(folder)
        processor = {
            "size": 48 if kind != "ConvNeXt" else 96,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.5] * 3,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return f"hf:{folder}"
    name = "test_convnext" if kind == "timm CNN" else "test_vit"
    state = {key: torch.randn_like(value) * 0.2 for key, value in timm.create_model(name).state_dict().items()}
    save_file(state, folder / "model.safetensors")
    if kind != "timm folder":
        return f"timm:{name}@{folder / 'model.safetensors'}"
    settings: dict[str, Any] = {
        "input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "num_classes": 1000,
        "first_conv": "patch_embed.proj", "classifier": "head", "fixed_input_size": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": settings}))
    return f"timm:local-dir:{folder}"


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, tmp_path: Path) -> None:
    source = write_source(kind, tmp_path / "source")
    tower = open_tower(as_tower(source))
    made = over(tower.config, tower.width)
    expected = numbers(made)
    save_model(tmp_path / "by-name", stored(made))
    assert not any(name.startswith("vision.") for name in load_file(tmp_path / "by-name" / "model.safetensors"))
    found = open_model(tmp_path / "by-name")
    assert torch.equal(numbers(found.model), expected)
    assert found.model.config == made.config
    rows, columns = tower.grid
    images = {"pixels": [*tower.pixels], "patches": [rows, columns], "tokens": tower.first + rows * columns}
    assert model_facts(found)["images"] == images
    save_model(tmp_path / "whole", stored(made), whole=True)
    shutil.rmtree(tmp_path / "source")
    (tmp_path / "whole").rename(tmp_path / "moved")
    again = open_model(tmp_path / "moved")
    assert torch.equal(numbers(again.model), expected)
    for name in ("pixels", "mean", "std", "grid", "first"):
        assert getattr(again.model.vision, name) == getattr(tower, name), name
    # What was whole once is written whole again.
    convert_model(again, tmp_path / "twice", to="openblip")
    shutil.rmtree(tmp_path / "moved")
    assert torch.equal(numbers(open_model(tmp_path / "twice").model), expected)


@pytest.mark.parametrize("trained", [False, True])
def test_buffers_keep_their_dtype(trained: bool, tmp_path: Path) -> None:
    """BatchNorm's counts are integers, and its means have the dtype of a frozen tower."""
    source = write_source("ResNet", tmp_path / "source")
    tower = open_tower(replace(as_tower(source), dtype="bfloat16", trained=trained))
    made = over(tower.config, tower.width)
    save_model(tmp_path / "whole", stored(made), whole=True)
    again = open_model(tmp_path / "whole").model
    kept = {name: value.dtype for name, value in again.vision.state_dict().items()}
    assert kept == {name: value.dtype for name, value in made.vision.state_dict().items()}
    assert torch.equal(numbers(again), numbers(made))


@pytest.mark.parametrize("kind", ["CLIP with its text", "ConvNeXt", "timm CNN"])
def test_other_towers_do_not_go_to_transformers(kind: str, tmp_path: Path) -> None:
    tower = open_tower(as_tower(write_source(kind, tmp_path / "source")))
    with pytest.raises(UserError, match="computes otherwise"):
        convert_model(stored(over(tower.config, tower.width)), tmp_path / "out", to="transformers")


@pytest.mark.parametrize("kind", ["timm file", "timm folder"])
def test_a_relative_place_is_found_from_anywhere(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    write_source(kind, tmp_path / "project" / "tower")
    monkeypatch.chdir(tmp_path / "project")
    source = "timm:test_vit@tower/model.safetensors" if kind == "timm file" else "timm:local-dir:tower"
    made = over(open_tower(as_tower(source)).config, 64)
    save_model("runs/model", stored(made))
    monkeypatch.chdir(tmp_path)
    found = open_model("project/runs/model")
    assert found.model.config.vision.source == source
    assert torch.equal(numbers(found.model), numbers(made))
