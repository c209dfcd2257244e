"""Frozen towers of timm that people use, under their own names but small: EVA-CLIP, CLIP, SigLIP, DINO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from small_blip2 import config, spread
from test_store import stored
from test_transformers import matching

from openblip.checkpoints.blip2_parts import build_blip2
from openblip.checkpoints.convert import convert_model
from openblip.core.errors import UserError
from openblip.models.blip2 import Blip2
from openblip.models.configs import TowerConfig
from openblip.models.tower import FrozenTower, make_tower

TIMM = {
    "EVA-CLIP": "eva_giant_patch14_clip_224",
    "CLIP": "vit_large_patch14_clip_quickgelu_224",
    "SigLIP": "vit_base_patch16_siglip_224",
    "DINOv2": "vit_small_patch14_dinov2",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "plain": "vit_base_patch16_224",
}
REGISTERS = {"DINOv2 with registers", "DINOv3"}
"""kinds with four register tokens after [CLS]"""
SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.fixture
def small_timm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """timm's models as they are but for their sizes."""
    create = timm.create_model

    def small(name: str, **options: Any) -> Any:
        torch.manual_seed(0)
        return create(name, **{**options, **SMALL})

    monkeypatch.setattr(timm, "create_model", small)
    return small


def tower_of(name: str, side: int, **settings: Any) -> FrozenTower:
    settings = {"source": f"timm:{name}", "image_size": side, "drop_layers": 1, **settings}
    return make_tower(TowerConfig(**settings), pretrained=False)


def read_of(kind: str, tokens: torch.Tensor) -> torch.Tensor:
    """What a tower of `kind` passes on of all tokens [B, N, D]: everything but its registers."""
    if kind not in REGISTERS:
        return tokens
    return tokens[:, [0, *range(5, tokens.shape[1])]]


def side_of(name: str) -> int:
    return 2 * int(name.partition("patch")[2][:2])


def frozen(tower: FrozenTower) -> None:
    """Hold a tower to what frozen means, in training and under autocast."""
    pixels = torch.randn(2, 3, *tower.pixels)
    tower.train()
    assert not any(part.training for part in tower.encoder.modules())
    tokens = tower(pixels)
    assert tokens.shape[::2] == (2, tower.width)
    assert tokens.dtype == tower.dtype
    assert not tokens.requires_grad
    assert not any(value.requires_grad for value in tower.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(tower(pixels), tokens, rtol=0, atol=0)


@pytest.mark.parametrize("kind", TIMM)
def test_timm_towers_are_read_before_their_last_block(small_timm: Callable[..., Any], kind: str) -> None:
    name, side = TIMM[kind], side_of(TIMM[kind])
    tower = tower_of(name, side)
    assert (tower.width, tower.depth, tower.pixels) == (32, 2, (side, side))
    frozen(tower)
    whole = small_timm(name, num_classes=0, img_size=side).eval()
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        (found,) = whole.forward_intermediates(
            pixels, indices=[1], norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        expected = found if isinstance(found, torch.Tensor) else torch.cat((found[1], found[0]), dim=1)
        torch.testing.assert_close(tower(pixels), read_of(kind, expected))
        kept = tower_of(name, side, drop_layers=0)
        torch.testing.assert_close(kept(pixels), read_of(kind, whole.forward_features(pixels)))
    frozen(tower_of(name, side, dtype="bfloat16"))


def over(tower: FrozenTower) -> Blip2:
    made_of = replace(config(qformer={"memory_width": 32}, vision_norm_eps=1e-6), vision=tower.config)
    made = build_blip2(made_of, vision=tower)
    torch.manual_seed(1)
    for name, part in made.named_children():
        if name != "vision":
            spread(part, 0.2)
    return made.eval()


@pytest.mark.parametrize("kind", ["EVA-CLIP", "plain"])
def test_plain_towers_go_to_transformers(small_timm: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    """What is exported computes there as here: EVA-CLIP has no biases of keys, and its last norm is not read."""
    side = side_of(TIMM[kind])
    tower = tower_of(TIMM[kind], side)
    spread(tower, 0.2)
    made = over(tower)
    folder = convert_model(stored(made), tmp_path / "out", to="transformers")
    exported = transformers.Blip2ForImageTextRetrieval.from_pretrained(folder)
    assert exported.config.vision_config.num_hidden_layers == 2
    matching(exported, made, torch.randn(3, 3, side, side))
    processor = transformers.Blip2Processor.from_pretrained(folder)
    assert list(processor.image_processor.image_mean) == list(tower.mean)


@pytest.mark.parametrize("kind", ["CLIP", "SigLIP", "DINOv2", "DINOv2 with registers", "DINOv3"])
def test_other_towers_do_not_go_to_transformers(small_timm: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    made = over(tower_of(TIMM[kind], side_of(TIMM[kind])))
    with pytest.raises(UserError, match="computes otherwise"):
        convert_model(stored(made), tmp_path / "out", to="transformers")
    last = over(tower_of(TIMM["EVA-CLIP"], 28, drop_layers=0))
    with pytest.raises(UserError, match="whose last norm is the trained one"):
        convert_model(stored(last), tmp_path / "last", to="transformers")


def test_sizes_of_no_whole_patches_are_refused() -> None:
    """timm leaves out the pixels behind the last whole patch; a CNN reads all."""
    words = (
        r'^"timm:vit_tiny_patch16_224" cuts images into patches of 16 pixels, .* 40 is no multiple; take 32 or 48'
    )
    with pytest.raises(UserError, match=words):
        tower_of("vit_tiny_patch16_224", 40)
    with pytest.raises(UserError, match="patches of 16 pixels, of which 40 is no multiple"):
        tower_of("vit_small_patch16_dinov3", 40)
    assert tower_of("test_efficientnet", 40, drop_layers=0).grid == (2, 2)


def test_a_size_that_a_tower_fails_at_is_refused() -> None:
    """MViTv2's tables of relative positions are of one size: an index leads out of them."""
    with pytest.raises(UserError, match=r"^timm:mvitv2_tiny does not take images of \d+ x \d+ pixels: "):
        tower_of("mvitv2_tiny", 100, drop_layers=0)


@pytest.mark.usefixtures("small_timm")
@pytest.mark.parametrize("kind", TIMM)
def test_pooling_stays_frozen_in_a_trained_tower(kind: str) -> None:
    tower = tower_of(TIMM[kind], 112, trained=True, drop_layers=0)
    tower.freeze_unread()
    tower(torch.randn(2, 3, *tower.pixels)).square().sum().backward()
    for name, value in tower.named_parameters():
        assert value.requires_grad == (value.grad is not None), name
    pooling = {name for name, _ in tower.named_parameters() if ".attn_pool." in name}
    assert bool(pooling) == (kind == "SigLIP")
    assert pooling <= {name for name, value in tower.named_parameters() if not value.requires_grad}
