"""The reference's own files: recognised by their keys, opened and written back bit for bit; full-size key lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import ROOT, GoldenBlip
from torch import Tensor

from openblip.checkpoints.blip import IGNORED, config_from_state, load_blip_state, original_state
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.recognise import describe, format_of
from openblip.checkpoints.store import StoredModel, open_model, read_state
from openblip.models.blip import Blip, BlipConfig
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.vqa import BlipVqa, VqaConfig

NAMES = {
    "pretrain": "pre-training",
    "caption": "captioning",
    "itm": "matching",
    "retrieval": "matching",
    "vqa": "VQA",
    "nlvr": "NLVR2",
}
MODELS: dict[type, Any] = {BlipConfig: Blip, VqaConfig: BlipVqa, NlvrConfig: BlipNlvr}
KEYS = ROOT / "blip_full_size_keys.json"


@pytest.mark.parametrize("name", NAMES)
def test_recognised_and_written_back_bit_for_bit(golden: GoldenBlip, name: str, tmp_path: Path) -> None:
    before = golden.state(name)
    assert format_of(before, name) == "blip"
    model = golden.model(name)
    assert NAMES[name] in describe(model.config)
    target = convert_model(StoredModel(model, golden.tokenizer), tmp_path / "back.pth", to="blip")
    after = read_state(target)
    needed = {key for key in before if not IGNORED.match(key) or key.endswith("position_ids")}
    needed -= {key for key in before if "_m." in key}
    assert needed <= set(after)
    assert set(after) - needed <= {"temp"}, "only the temperature is added where the file had none"
    for key in needed:
        assert torch.equal(before[key], after[key]), key


def full_size() -> dict[str, dict[str, list[int]]]:
    return json.loads(KEYS.read_text()) if KEYS.is_file() else {}


@pytest.mark.parametrize("name", full_size())
def test_full_size_keys_load_without_a_leftover(name: str) -> None:
    state: dict[str, Tensor] = {key: torch.empty(shape, device="meta") for key, shape in full_size()[name].items()}
    config = config_from_state(state)
    with torch.device("meta"):
        model = MODELS[type(config)](config)
    ignored = load_blip_state(model, state, source=name)
    kind, size, pixels = name.split("_")
    assert NAMES[kind] in describe(config)
    assert config.vision.pixels == (int(pixels), int(pixels))
    assert config.vision.width == {"base": 768, "large": 1024}[size]
    assert all(IGNORED.match(key) for key in ignored)
    written = original_state(model)
    leftover = {key for key in state if key not in written} - set(ignored)
    assert not leftover
    assert {key: list(value.shape) for key, value in written.items() if key in state} == {
        key: shape for key, shape in full_size()[name].items() if key in written
    }


def test_the_key_lists_are_there() -> None:
    assert len(full_size()) >= 6


@pytest.mark.parametrize("grid", [(2, 6), (8, 3), (7, 7)], ids=["wide", "tall", "square"])
def test_other_resolutions_interpolate_positions_as_the_reference(
    golden: GoldenBlip, grid: tuple[int, int], tmp_path: Path
) -> None:
    """The reference resamples the grid by bicubic interpolation; here for grids that are no square too."""
    state, meta = golden.state("caption"), golden.meta
    patch = meta["patch_size"]
    height, width = grid[0] * patch, grid[1] * patch
    config = config_from_state(
        state, num_vision_heads=meta["vision_heads"], num_text_heads=1, image_size=(height, width)
    )
    model = Blip(config).eval()
    load_blip_state(model, state, source="caption")
    positions = state["visual_encoder.pos_embed"]
    side = round((positions.shape[1] - 1) ** 0.5)
    square = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    own = model.vision.vit.pos_embed
    torch.testing.assert_close(own[:, 1:], wanted.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(own[:, :1], positions[:, :1])
    with torch.no_grad():
        assert model.encode_image(torch.randn(2, 3, height, width)).shape[1] == 1 + grid[0] * grid[1]
    convert_model(StoredModel(model, golden.tokenizer), tmp_path / "own", to="openblip")
    back = open_model(tmp_path / "own", image_size=meta["image_size"])
    assert back.model.vision.vit.pos_embed.shape == positions.shape, "our own folder changes size likewise"
