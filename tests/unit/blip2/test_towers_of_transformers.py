"""Frozen towers of transformers: what is read of each kind, at which size, and what is not computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kinds_of_towers import CNNS, SIZES, TRANSFORMERS, make_transformers
from small_blip2 import spread
from test_towers_of_others import frozen

from openblip.core.errors import UserError
from openblip.models.configs import TowerConfig
from openblip.models.tower import FrozenTower, make_tower


def written(kind: str, folder: Path) -> Any:
    """The model of a kind, drawn and written."""
    torch.manual_seed(0)
    model = make_transformers(kind)
    spread(model, 0.2)
    model.save_pretrained(folder)
    return model


def tower_of(folder: Path, **settings: Any) -> FrozenTower:
    return make_tower(TowerConfig(source=f"hf:{folder}", **settings))


def given(kind: str, images: torch.Tensor) -> dict[str, Any]:
    """What the model of a kind reads: images, or as SigLIP 2 wants them patches cut out one by one."""
    if kind != "SigLIP 2 NaFlex":
        return {"pixel_values": images}
    rows, columns = images.shape[2] // 8, images.shape[3] // 8
    patches = [
        images[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].permute(0, 2, 3, 1).flatten(1)
        for row in range(rows)
        for column in range(columns)
    ]
    count = len(images)
    return {
        "pixel_values": torch.stack(patches, dim=1),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[rows, columns]] * count),
    }


@pytest.mark.parametrize("kind", TRANSFORMERS)
@torch.no_grad()
def test_tokens_are_hidden_states_before_the_blocks_that_are_left_out(kind: str, tmp_path: Path) -> None:
    model = written(kind, tmp_path)
    _, first, registers = TRANSFORMERS[kind]
    images = torch.randn(2, 3, 32, 32)
    vision = getattr(model, "vision_model", model)
    theirs = vision(**given(kind, images), output_hidden_states=True)
    read = [*range(first), *range(first + registers, first + registers + 16)]  # registers are left out
    for dropped in (0, 1, 2):
        tower = tower_of(tmp_path, drop_layers=dropped)
        assert (tower.width, tower.depth, tower.pixels) == (32, 3 - dropped, (32, 32))
        assert (tower.first, tower.grid) == (first, (4, 4))
        expected = theirs.hidden_states[-1 - dropped] if dropped else theirs.last_hidden_state
        torch.testing.assert_close(tower(images), expected[:, read])
        # Nothing of the text side, of the pooling or of a block that is left out is there to be computed.
        own = {name.removeprefix("model.") for name, _ in tower.encoder.named_parameters()}
        assert own <= {name for name, _ in vision.named_parameters()}
        assert not any("pooler" in name or name.startswith("head") for name in own)
        assert not any(f".{block}." in name for name in own for block in range(3 - dropped, 3))
    assert tower_of(tmp_path).config.drop_layers == 1
    frozen(tower_of(tmp_path))
    frozen(tower_of(tmp_path, dtype="bfloat16"))


@pytest.mark.parametrize("kind", TRANSFORMERS)
@torch.no_grad()
def test_other_sizes_than_the_tables_are_read(kind: str, tmp_path: Path) -> None:
    model = written(kind, tmp_path)
    _, first, registers = TRANSFORMERS[kind]
    tower = tower_of(tmp_path, image_size=48, drop_layers=0)
    assert (tower.pixels, tower.grid, tower.config.image_size) == ((48, 48), (6, 6), 48)
    images = torch.randn(2, 3, 48, 48)
    vision = getattr(model, "vision_model", model)
    named = {} if kind.startswith(("DINO", "SigLIP 2")) else {"interpolate_pos_encoding": True}
    expected = vision(**given(kind, images), **named).last_hidden_state
    read = [*range(first), *range(first + registers, expected.shape[1])]
    torch.testing.assert_close(tower(images), expected[:, read])
    with pytest.raises(UserError, match="patches of 8 pixels, of which 36 is no multiple; take 32 or 40 pixels"):
        tower_of(tmp_path, image_size=36)


@pytest.mark.parametrize("kind", CNNS)
@torch.no_grad()
def test_feature_maps_are_tokens(kind: str, tmp_path: Path) -> None:
    model = written(kind, tmp_path)
    tower = tower_of(tmp_path, image_size=96)
    images = torch.randn(2, 3, 96, 96)
    found, first = tower(images), CNNS[kind][1]
    assert (tower.width, tower.grid, tower.first, tower.config.drop_layers) == (32, (3, 3), first, 0)
    expected = model(pixel_values=images).last_hidden_state
    if first:
        torch.testing.assert_close(found, expected)
    else:
        torch.testing.assert_close(found[:, 5], expected[:, :, 1, 2])  # the sixth of three by three
    assert found.shape == (2, first + 9, 32)
    frozen(tower)
    with pytest.raises(UserError, match=r"has stages in place of one list of blocks .* drop_layers to 0"):
        tower_of(tmp_path, image_size=96, drop_layers=1)


def test_a_table_of_one_size_takes_no_other(tmp_path: Path) -> None:
    """SAM's positions are of one size, and convolutions follow its blocks."""
    more: dict[str, Any] = {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 64}
    transformers.SamVisionModel(transformers.SamVisionConfig(**SIZES, **more)).save_pretrained(tmp_path)
    tower = tower_of(tmp_path, drop_layers=0)
    assert (tower.width, tower.grid, tower.first) == (16, (4, 4), 0)
    with pytest.raises(UserError, match=r"does not take images of 48 x 48 pixels: .*; its own are of 32 x 32"):
        tower_of(tmp_path, drop_layers=0, image_size=48)
    with pytest.raises(UserError, match=r"computes on behind its blocks, so none is left out; name it hf:.*@0"):
        tower_of(tmp_path)


def test_weights_that_are_missing_are_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    written("DINOv2", tmp_path)
    file = tmp_path / "model.safetensors"
    state = {name: value for name, value in load_file(file).items() if "layer.2.norm1.bias" not in name}
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r'lack ".*layer\.2\.norm1\.bias"'):
        tower_of(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError):
        tower_of(tmp_path)


def test_a_pooling_that_a_folder_lacks_does_not_matter(tmp_path: Path) -> None:
    """A classifier has none; drawn at every opening it would be another tower each time."""
    torch.manual_seed(0)
    transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).save_pretrained(tmp_path)
    one, two = (dict(tower_of(tmp_path).named_parameters()) for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_masked_autoencoders_are_refused(tmp_path: Path) -> None:
    transformers.ViTMAEModel(transformers.ViTMAEConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="hides patches at random"):
        tower_of(tmp_path)


UNREAD = {"CLIP": {"post_layernorm.weight", "post_layernorm.bias"}, "DINOv2": {"embeddings.mask_token"}}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_what_no_token_depends_on_stays_frozen_in_a_trained_tower(kind: str, tmp_path: Path) -> None:
    written(kind, tmp_path)
    tower = tower_of(tmp_path, trained=True, drop_layers=0).train()
    tower.freeze_unread()
    assert all(part.training for part in tower.modules())
    tower(torch.randn(2, 3, *tower.pixels)).square().sum().backward()
    for name, value in tower.named_parameters():
        assert value.requires_grad == (value.grad is not None), name
    frozen = {name for name, value in tower.named_parameters() if not value.requires_grad}
    if kind in UNREAD:
        assert {name.removeprefix("encoder.model.").removeprefix("vision_model.") for name in frozen} == UNREAD[
            kind
        ]
