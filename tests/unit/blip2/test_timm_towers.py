"""Towers of timm from folders and files, and those that are no Vision Transformer; what is wrong is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from test_towers_of_others import frozen

from openblip.checkpoints.blip2_parts import open_tower
from openblip.core.errors import UserError
from openblip.models.configs import TowerConfig, as_tower
from openblip.models.tower import FrozenTower, make_tower

NAME = "test_vit"
"""a Vision Transformer for 160 pixels in patches of 16, 64 wide, six blocks"""


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME)
    return {name: torch.randn_like(value) * 0.2 for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, torch.Tensor]) -> Path:
    """The weights as a safetensors file, as a checkpoint of a training script, and in a folder of timm's format."""
    folder = tmp_path_factory.mktemp("timm")
    save_file(weights, folder / "a.safetensors")
    torch.save({"state_dict": weights}, folder / "b.pth")
    save_file({**weights, "pos_embed": weights["pos_embed"]}, folder / "3")
    known = dict(timm.get_pretrained_cfg(NAME).to_dict())
    settings = {"input_size": [3, 160, 160], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 1000}
    kept = {name: known[name] for name in ("first_conv", "classifier", "fixed_input_size", "interpolation")}
    (folder / "model").mkdir()
    described = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": kept | settings}
    (folder / "model" / "config.json").write_text(json.dumps(described))
    shutil.copy(folder / "a.safetensors", folder / "model" / "model.safetensors")
    return folder


@torch.no_grad()
def same(tower: FrozenTower, weights: dict[str, torch.Tensor], drop: int) -> None:
    """The tower gives what timm gives with these weights."""
    whole: Any = timm.create_model(NAME, img_size=tower.pixels[0]).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(dict(weights), whole)
    whole.load_state_dict(state)
    images = torch.randn(1, 3, *tower.pixels)
    (found,) = whole.forward_intermediates(
        images,
        indices=[5 - drop],
        norm=not drop,
        output_fmt="NLC",
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    torch.testing.assert_close(tower(images), torch.cat((found[1], found[0]), dim=1))


@pytest.mark.parametrize("file", ["a.safetensors", "b.pth", "./3"])
def test_weights_from_a_file(
    place: Path, weights: dict[str, torch.Tensor], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    for number, dropped in (("", 1), ("@0", 0), ("@2", 2)):
        config = as_tower(f"timm:{NAME}@{file}{number}")
        assert config.source == f"timm:{NAME}@{file}"
        tower = open_tower(config)
        assert (tower.config.source, tower.config.drop_layers) == (config.source, dropped)
        assert (tower.pixels, tower.grid, tower.first) == ((160, 160), (10, 10), 1)
        same(tower, weights, dropped)
    frozen(tower)


def test_weights_from_a_folder_of_timm(place: Path, weights: dict[str, torch.Tensor]) -> None:
    tower = open_tower(as_tower(f"timm:local-dir:{place / 'model'}@1"))
    assert (tower.mean, tower.std, tower.pixels) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (160, 160))
    same(tower, weights, 1)
    larger = open_tower(TowerConfig(source=f"timm:local-dir:{place / 'model'}", image_size=192))
    assert (larger.pixels, larger.grid) == ((192, 192), (12, 12))
    same(larger, weights, 1)


def test_digits_behind_the_last_at_are_blocks() -> None:
    assert as_tower(f"timm:{NAME}@3") == TowerConfig(source=f"timm:{NAME}", drop_layers=3)
    assert as_tower(f"timm:{NAME}@./3").place == (f"timm:{NAME}@", "./3")
    assert as_tower("timm:local-dir:runs/a@b@1").place == ("timm:local-dir:", "runs/a@b")
    assert as_tower("timm:hf-hub:org/name@main").place == ("timm:hf-hub:org/name@main", "")
    assert as_tower("hf:org/name@1").place == ("hf:", "org/name")


def test_weights_that_do_not_fit_are_refused(place: Path, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def refused(state: dict[str, torch.Tensor] | bytes, words: str, name: str = NAME) -> None:
        file = tmp_path / "w.safetensors"
        file.write_bytes(state) if isinstance(state, bytes) else save_file(state, file)
        with pytest.raises(UserError, match=words) as told:
            open_tower(as_tower(f"timm:{name}@{file}"))
        assert "\n" not in str(told.value)

    refused({name: value for name, value in weights.items() if name != "norm.bias"}, 'lack "norm.bias" of test_vit')
    refused({**weights, "blocks.6.norm1.bias": torch.zeros(64)}, r'hold "blocks\.6\.norm1\.bias", which test_vit')
    refused({**weights, "blocks.5.norm1.bias": torch.zeros(7)}, "are not those of test_vit")
    refused(weights, "are not those of|weights lack", name="test_convnext")
    refused((place / "a.safetensors").read_bytes()[:1000], "damaged or cut short")
    refused(b"<!DOCTYPE html>", "no checkpoint")
    theirs = tmp_path / "of-transformers"
    transformers.ViTModel(
        transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(theirs)
    for source, words in (
        (f"timm:{NAME}@nowhere.safetensors", "no file or folder nowhere.safetensors"),
        ("timm:local-dir:nowhere", "no file or folder nowhere"),
        (f"timm:local-dir:{tmp_path}", "timm does not give|neither"),
        (f"timm:local-dir:{theirs}", f"no folder in timm's format, .* is hf:{theirs}"),
        (f"timm:no_such_vit@{place / 'a.safetensors'}", 'timm does not give "no_such_vit"'),
    ):
        with pytest.raises(UserError, match=words):
            open_tower(as_tower(source))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("test_convnext", 64),
        ("test_efficientnet", 256),
        ("test_resnet", 96),
        ("test_byobnet", 256),
        ("coatnet_pico_rw_224", 512),
    ],
)
@torch.no_grad()
def test_feature_maps_are_tokens(name: str, width: int) -> None:
    size = 96 if name.startswith("coatnet") else None
    tower = make_tower(TowerConfig(source=f"timm:{name}", image_size=size), pretrained=False)
    assert (tower.width, tower.first, tower.config.drop_layers) == (width, 0, 0)
    images = torch.randn(2, 3, *tower.pixels)
    rows, columns = tower.grid
    theirs = tower.encoder.vit.forward_features(images)  # type: ignore[union-attr, operator]
    found = tower(images)
    assert theirs.shape == (2, width, rows, columns)
    torch.testing.assert_close(found[:, columns + 2], theirs[:, :, 1, 2])
    assert found.shape == (2, rows * columns, width)
    frozen(tower)
    with pytest.raises(UserError, match="has stages in place of one list of blocks"):
        make_tower(TowerConfig(source=f"timm:{name}", drop_layers=1), pretrained=False)


@torch.no_grad()
def test_maps_with_channels_last_are_tokens() -> None:
    options: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    create = timm.create_model
    model: Any = create("swin_tiny_patch4_window7_224", num_classes=0, img_size=32, **options).eval()
    from openblip.models.tower_timm import TimmEncoder

    images = torch.randn(2, 3, 32, 32)
    theirs = model.forward_features(images)  # [2, 4, 4, 16]
    assert theirs.shape == (2, 4, 4, 16)
    torch.testing.assert_close(TimmEncoder(model)(images)[:, 6], theirs[:, 1, 2])


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet"])
def test_an_image_size_that_is_named_is_taken(name: str) -> None:
    tower = make_tower(TowerConfig(source=f"timm:{name}", image_size=96), pretrained=False)
    assert (tower.pixels, tower.config.image_size) == ((96, 96), 96)
    assert tower(torch.zeros(1, 3, 96, 96)).shape[1] == tower.first + tower.grid[0] * tower.grid[1]


def test_a_size_of_broken_patches_is_refused() -> None:
    with pytest.raises(UserError, match="150"):
        make_tower(TowerConfig(source="timm:test_vit", image_size=150), pretrained=False)
