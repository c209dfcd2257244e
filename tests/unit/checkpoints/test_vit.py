"""A vision tower started from a pretrained Vision Transformer gives its tokens; the donors are made on the spot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.checkpoints.vit import read_vit, start_vision
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple, normalize
from openblip.models.vision import VisionEncoder

SIZES: dict[str, Any] = {"patch_size": 8, "depth": 2, "num_heads": 2}
THEIRS: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 2e-4}
"""Sums of float32 in another order, and products of weights with factors in place of factors of sums; tokens are of
size 1, behind the final norm."""
IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def spread(model: nn.Module) -> Any:
    """Weights large enough that every one of them shows."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def pixels(side: int) -> Tensor:
    return torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def started(source: str, side: int | None = None) -> tuple[VisionEncoder, str]:
    pretrained = read_vit(source)
    vision = VisionEncoder(pretrained.sizes(side)).eval()
    return vision, start_vision(vision, pretrained)


def donor(**changes: Any) -> VisionTransformer:
    return spread(VisionTransformer(img_size=32, embed_dim=24, num_classes=0, **{**SIZES, **changes}))


def offer(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> list[tuple[Any, ...]]:
    """Let timm give `model`, whatever is requested; returns what was."""
    asked: list[tuple[Any, ...]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    return asked


# timm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"init_values": 0.5},
        {"init_values": 0.5, "no_embed_class": True},
        {"reg_tokens": 3, "no_embed_class": True},
        {"reg_tokens": 3},
    ],
    ids=["plain", "layer scale", "DeiT III", "registers without positions", "registers"],
)
@torch.no_grad()
def test_it_gives_the_tokens_of_timms_model(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    model = donor(**changes)
    model.pretrained_cfg = {"mean": IMAGENET[0], "std": IMAGENET[1]}
    asked = offer(monkeypatch, model)
    vision, told = started("timm:some_vit")
    assert asked == [("some_vit", {"pretrained": True, "num_classes": 0})]
    assert told == (
        "Vision tower from some_vit: 2 layers, 24 wide, patches of 8; taken: all weights, its normalisation of "
        "images folded into the patch embedding"
    )
    images = pixels(32)
    expected = model.forward_features(normalize(images, mean=IMAGENET[0], std=IMAGENET[1]))
    registers = changes.get("reg_tokens", 0)
    expected = torch.cat((expected[:, :1], expected[:, 1 + registers :]), dim=1)
    torch.testing.assert_close(vision(vision.normalize(images)), expected, **CLOSE)


@torch.no_grad()
def test_a_distilled_deit_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spread(VisionTransformerDistilled(img_size=32, embed_dim=24, num_classes=0, **SIZES))
    offer(monkeypatch, model)
    vision, _ = started("timm:some_vit")
    images = vision.normalize(pixels(32))
    expected = model.forward_features(images)
    torch.testing.assert_close(vision(images), torch.cat((expected[:, :1], expected[:, 2:]), dim=1), **CLOSE)


@torch.no_grad()
def test_a_local_folder_of_timm(tmp_path: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = spread(timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes))
    described = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": sizes,
        "pretrained_cfg": {"mean": IMAGENET[0], "std": IMAGENET[1], "input_size": [3, 32, 32], "num_classes": 0},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(described))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    vision, _ = started(f"timm:local-dir:{tmp_path}")
    images = pixels(32)
    expected = model.forward_features(normalize(images, mean=IMAGENET[0], std=IMAGENET[1]))
    torch.testing.assert_close(vision(vision.normalize(images)), expected, **CLOSE)


@pytest.mark.parametrize(
    "changes", [{"act_layer": nn.SiLU}, {"class_token": False, "global_pool": ""}], ids=["activation", "no [CLS]"]
)
def test_what_is_no_plain_vit_of_timm_is_refused(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    offer(monkeypatch, donor(**changes))
    with pytest.raises(UserError, match='"some_vit" is no plain Vision Transformer'):
        read_vit("timm:some_vit")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pre_norm": True}, '"norm_pre.bias" is one of its weights'),
        ({"qkv_bias": False}, '"blocks.0.attn.qkv.bias" is missing'),
        ({"qk_norm": True}, '"blocks.0.attn.k_norm.bias" is one of its weights'),
    ],
)
def test_other_weights_than_a_plain_vits_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    offer(monkeypatch, donor(**changes))
    with pytest.raises(UserError, match=f'"timm:some_vit" is no plain Vision Transformer.*{words}'):
        read_vit("timm:some_vit")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 3}, r"blocks\.2.*and 11 more differ"),
        ({"patch_size": 16}, r"patch_embed\.proj\.weight"),
        ({"stem": "conv"}, r"patch_embed\.layers"),
    ],
)
def test_a_tower_of_another_size_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    offer(monkeypatch, donor())
    pretrained = read_vit("timm:some_vit")
    own = VisionEncoder(replace(pretrained.config, **changes))
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(UserError, match=f'"timm:some_vit" does not fit this vision tower: {words}'):
        start_vision(own, pretrained)
    assert all(value.equal(before[name]) for name, value in own.state_dict().items())


def test_rotary_positions_and_convolutions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = timm.create_model("vit_small_patch16_dinov3", img_size=32, embed_dim=24, depth=1, num_heads=2)
    convolutions = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    for model in (rotary, convolutions):
        offer(monkeypatch, model)
        with pytest.raises(UserError, match="take a ViT, DeiT or DINOv2"):
            read_vit("timm:some_vit")


def test_what_timm_cannot_give_is_reported() -> None:
    with pytest.raises(UserError, match='timm has no weights for "some_vit" here'):
        read_vit("timm:some_vit")


# transformers -----------------------------------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**THEIRS)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(num_register_tokens=3, **THEIRS)
    ),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(intermediate_size=48, **THEIRS)),
    "deit": lambda: transformers.DeiTModel(transformers.DeiTConfig(intermediate_size=48, **THEIRS)),
}
EXTRA = {"registers": 3, "deit": 1}
"""tokens between [CLS] and the patches"""


@pytest.mark.parametrize("side", [32, 16, 48], ids=["its size", "smaller", "larger"])
@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_it_gives_the_tokens_of_transformers_model(tmp_path: Path, kind: str, side: int) -> None:
    model = spread(KINDS[kind]())
    model.save_pretrained(tmp_path)
    vision, told = started(f"hf:{tmp_path}", side)
    assert ("positions interpolated from 4 x 4" in told) == (side != 32)
    mean, std = IMAGENET if kind != "vit" else ((0.5,) * 3, (0.5,) * 3)
    images = pixels(side)
    # DINOv2's classes interpolate by themselves.
    options = {"interpolate_pos_encoding": True} if kind in ("vit", "deit") else {}
    expected = model(normalize(images, mean=mean, std=std), **options).last_hidden_state
    expected = torch.cat((expected[:, :1], expected[:, 1 + EXTRA.get(kind, 0) :]), dim=1)
    torch.testing.assert_close(vision(vision.normalize(images)), expected, **CLOSE)


@torch.no_grad()
def test_the_image_processor_says_the_normalisation(tmp_path: Path) -> None:
    model = spread(KINDS["vit"]())
    model.save_pretrained(tmp_path)
    settings = {"image_processor_type": "ViTImageProcessor", "image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    vision, _ = started(f"hf:{tmp_path}")
    images = vision.normalize(pixels(32))
    torch.testing.assert_close(vision(images), model(images).last_hidden_state, **CLOSE)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: transformers.ConvNextModel(transformers.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)),
         "is of the kind convnext and no plain"),
        (lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(intermediate_size=48, **THEIRS)),
         "is of the kind dinov3_vit and no plain"),
        (lambda: transformers.Dinov2Model(transformers.Dinov2Config(use_swiglu_ffn=True, **THEIRS)),
         "is of the kind dinov2 and no plain"),
    ],
    ids=["convnext", "dinov3", "swiglu"],
)  # fmt: skip
def test_what_is_no_plain_vit_of_transformers_is_refused(tmp_path: Path, model: Any, words: str) -> None:
    model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        read_vit(f"hf:{tmp_path}")


def test_a_file_that_is_cut_short_is_reported(tmp_path: Path) -> None:
    KINDS["vit"]().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or cut short"):
        read_vit(f"hf:{tmp_path}")


def test_places_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        read_vit(f"hf:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match='timm:NAME or hf:NAME; "some_vit" is none of these'):
        read_vit("some_vit")


# The model around it ----------------------------------------------------------------------------------------


def blip(source: str, **parts: bool) -> tuple[Blip, TextTokenizer]:
    pretrained = read_vit(source)
    tokenizer = TextTokenizer.train(["a red circle", "a blue square"], vocab_size=60)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=16, depth=1, num_heads=2, inner_width=32, max_positions=16,
        memory_width=24, dropout=0.0,
    )  # fmt: skip
    model = Blip(BlipConfig(vision=pretrained.sizes(16), text=text, embed_dim=8, **parts)).eval()
    start_vision(model.vision, pretrained)
    return model, tokenizer


@pytest.mark.parametrize("kind", ["dinov2", "registers"])
@torch.no_grad()
def test_it_is_stored_and_opened_at_another_size(tmp_path: Path, kind: str) -> None:
    spread(KINDS[kind]()).save_pretrained(tmp_path / "vit")
    model, tokenizer = blip(f"hf:{tmp_path / 'vit'}")
    save_model(tmp_path / "model", StoredModel(model, tokenizer, {}))
    again = open_model(tmp_path / "model").model.eval()
    assert torch.equal(again.encode_pixels(pixels(16)), model.encode_pixels(pixels(16)))
    larger = open_model(tmp_path / "model", image_size=24).model
    assert larger.encode_pixels(pixels(24)).shape == (2, 1 + 9, 24)


@torch.no_grad()
def test_it_is_exported_to_transformers(tmp_path: Path) -> None:
    """Their BLIP has no LayerScale and normalises with CLIP's values: both are in the weights."""
    spread(KINDS["dinov2"]()).save_pretrained(tmp_path / "vit")
    model, tokenizer = blip(f"hf:{tmp_path / 'vit'}", encoder=False)
    convert_model(StoredModel(model, tokenizer, {}), tmp_path / "hf", to="transformers")
    theirs = transformers.BlipForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    images = pixels(16)
    prepared = processor.image_processor(list(images), do_resize=False, return_tensors="pt").pixel_values
    expected = theirs.vision_model(prepared).last_hidden_state
    torch.testing.assert_close(model.encode_pixels(images), expected, **CLOSE)


@pytest.mark.parametrize("to", ["transformers", "blip"])
def test_registers_are_not_exported(tmp_path: Path, to: Any) -> None:
    spread(KINDS["registers"]()).save_pretrained(tmp_path / "vit")
    model, tokenizer = blip(f"hf:{tmp_path / 'vit'}", encoder=False)
    with pytest.raises(UserError, match="has 3 registers"):
        convert_model(StoredModel(model, tokenizer, {}), tmp_path / "out.pth", to=to)
