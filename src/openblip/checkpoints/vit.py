"""A vision tower started from a pretrained Vision Transformer of timm or transformers: ViT, DeiT, DINOv2.

What a plain tower has not is folded into its weights, so that every format of BLIP holds the started tower:
LayerScale into the linear layer before it, and the mean and standard deviation of the pretrained model's images
into the patch embedding, since a tower of BLIP reads images normalised with CLIP's. The function stays the same;
the gradients of the folded weights have another scale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.blip import QKV
from openblip.checkpoints.processor import fold_normalization
from openblip.core.errors import UserError
from openblip.core.meta import on_meta
from openblip.models.configs import VisionConfig
from openblip.models.normalization import normalization
from openblip.models.opening import opening
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD
from openblip.models.tower_hf import image_processor
from openblip.models.vision import VisionEncoder, interpolate_positions, timm_vit

__all__ = ["PretrainedVit", "read_vit", "start_vision"]

PIXELS = 224
"""of BLIP's pre-training"""
_RENAMED = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(register_tokens|distillation_token)$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.query."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.key."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
"""names of transformers, of version 5.17 and of later ones, to those of timm"""
_UNUSED = re.compile(r"^pooler\.|^mask_token$")


@dataclass(frozen=True, kw_only=True)
class PretrainedVit:
    """A pretrained Vision Transformer as a tower of BLIP."""

    source: str
    config: VisionConfig
    """its sizes, with images of the size that its position embeddings stand for"""
    state: dict[str, Tensor]
    """its weights, named as those of `VisionEncoder.vit`"""
    antialias: bool = False
    """whether its positions are interpolated so"""

    def sizes(self, image_size: int | tuple[int, int] | None) -> VisionConfig:
        """Of a tower that reads images of `image_size`; None is 224 pixels, or fewer where it was trained with
        fewer."""
        height, width = self.config.pixels
        return replace(self.config, image_size=image_size or (min(height, PIXELS), min(width, PIXELS)))


def read_vit(source: str, *, weights: bool = True) -> PretrainedVit:
    """Read a pretrained Vision Transformer.

    Args:
        source: timm:NAME (timm:local-dir:FOLDER too), or hf:NAME with a hub name or folder of transformers.
        weights: False reads its description alone, and leaves its weights on "meta".

    Raises:
        UserError: it cannot be read, or is no plain Vision Transformer.
    """
    kind, _, name = source.partition(":")
    if kind not in ("timm", "hf") or not name:
        raise UserError(f'the vision tower of a BLIP starts from timm:NAME or hf:NAME; "{source}" is none of these')
    read = _of_timm if kind == "timm" else _of_transformers
    if weights:
        return read(source, name, True)
    with on_meta():
        return read(source, name, False)


def start_vision(vision: VisionEncoder, donor: PretrainedVit) -> str:
    """Load the weights of `donor` into `vision`, positions interpolated.

    Returns:
        what was taken over, in a line.

    Raises:
        UserError: its sizes differ.
    """
    theirs, ours, state = donor.config, vision.config, dict(donor.state)
    state["pos_embed"] = interpolate_positions(
        state["pos_embed"], ours.grid, theirs.grid, first=1 + theirs.registers, antialias=donor.antialias
    )
    own = vision.vit.state_dict()
    shapes = [{name: value.shape for name, value in one.items()} for one in (own, state)]
    wrong = sorted(name for name in {*own, *state} if shapes[0].get(name) != shapes[1].get(name))
    if wrong:
        raise UserError(
            f'"{donor.source}" does not fit this vision tower: {wrong[0]} and {len(wrong) - 1} more differ; '
            "--model from-parts takes the sizes of a plain Vision Transformer"
        )
    vision.vit.load_state_dict(state)
    name = donor.source.partition(":")[2]
    sides = [" x ".join(map(str, config.grid)) for config in (theirs, ours)]
    moved = f" with positions interpolated from {sides[0]} to {sides[1]}" if sides[0] != sides[1] else ""
    return (
        f"Vision tower from {Path(name).name if Path(name).is_dir() else name}: {ours.depth} layers, "
        f"{ours.width} wide, patches of {ours.patch_size}; taken: all weights{moved}, its normalisation of images "
        "folded into the patch embedding"
    )


def _of_timm(source: str, name: str, weights: bool) -> PretrainedVit:
    vit: Any = timm_vit(name, pretrained=weights)
    first, registers = vit.blocks[0], 0
    state = {key: value.detach() for key, value in vit.state_dict().items()}
    if "dist_token" in state:
        state["reg_token"] = state.pop("dist_token")
    if "reg_token" in state:
        registers = state["reg_token"].shape[1]
    described = getattr(vit, "pretrained_cfg", None) or {}
    config = VisionConfig(
        image_size=tuple(vit.patch_embed.img_size),
        patch_size=vit.patch_embed.patch_size[0],
        width=vit.embed_dim,
        depth=len(vit.blocks),
        num_heads=first.attn.num_heads,
        mlp_ratio=first.mlp.fc1.out_features / vit.embed_dim,
        layer_norm_eps=first.norm1.eps,
        registers=registers,
        pretrained=source,
    )
    mean, std = described.get("mean", IMAGE_MEAN), described.get("std", IMAGE_STD)
    return _folded(PretrainedVit(source=source, config=config, state=state), mean, std)


def _of_transformers(source: str, name: str, weights: bool) -> PretrainedVit:
    from transformers import AutoConfig, AutoModel
    from transformers.image_utils import (
        IMAGENET_DEFAULT_MEAN,
        IMAGENET_DEFAULT_STD,
        IMAGENET_STANDARD_MEAN,
        IMAGENET_STANDARD_STD,
    )

    usual = dict.fromkeys(
        ("dinov2", "dinov2_with_registers", "deit"), (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    usual["vit"] = (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)
    with opening(name, "a folder of transformers"):
        theirs: Any = AutoConfig.from_pretrained(name)
        kind = theirs.model_type
        if (
            kind not in usual
            or theirs.hidden_act != "gelu"
            or not theirs.qkv_bias
            or getattr(theirs, "use_swiglu_ffn", False)
        ):
            raise UserError(
                f'"{name}" is of the kind {kind} and no plain Vision Transformer, with [CLS], learned positions '
                "and GELU, as the vision tower of BLIP is: take a ViT, DeiT or DINOv2"
            )
        model: Any
        found: dict[str, Any] = {"missing_keys": ()}
        if weights:
            model, found = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
        else:
            model = AutoModel.from_config(theirs)
    state = {_renamed(key): value.detach() for key, value in model.state_dict().items()}
    state = {key: value for key, value in state.items() if not _UNUSED.match(key)}
    if missing := sorted(key for key in map(_renamed, found["missing_keys"]) if key in state):
        raise UserError(f'"{name}" is no whole Vision Transformer: it has no "{missing[0]}"')
    for i in range(theirs.num_hidden_layers):
        for part in ("weight", "bias"):
            joined = [state.pop(f"blocks.{i}.attn.{one}.{part}") for one in QKV]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(joined)
    size, width = theirs.image_size, theirs.hidden_size
    config = VisionConfig(
        image_size=size if isinstance(size, int) else (size[0], size[1]),
        patch_size=theirs.patch_size,
        width=width,
        depth=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width,
        layer_norm_eps=theirs.layer_norm_eps,
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        pretrained=source,
    )
    donor = PretrainedVit(source=source, config=config, state=state, antialias=kind == "dinov2_with_registers")
    return _folded(donor, *_normalisation(name, usual[kind]))


def _renamed(name: str) -> str:
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def _normalisation(
    name: str, usual: tuple[Sequence[float], Sequence[float]]
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of its image processor; `usual` where it brings none."""
    found = image_processor(name)
    if found.get("do_flip_channel_order"):
        raise UserError(
            f'"{name}" reads images in blue, green and red, and the vision tower of BLIP in red, green and blue'
        )
    return normalization(name, found, usual)


def _folded(donor: PretrainedVit, mean: Sequence[float], std: Sequence[float]) -> PretrainedVit:
    """`donor` without LayerScale, for images normalised with CLIP's values, with a position for every token.

    Args:
        mean: of its images, of values from 0 to 1; `std` likewise.

    Raises:
        UserError: it has other weights than a plain Vision Transformer.
    """
    state, config = dict(donor.state), donor.config
    with on_meta():
        plain = set(VisionEncoder(config).vit.state_dict())
    if other := sorted(plain.symmetric_difference(name for name in state if not name.endswith(".gamma"))):
        fault = "missing" if other[0] in plain else "one of its weights"
        raise UserError(
            f'"{donor.source}" is no plain Vision Transformer, as the vision tower of BLIP is: "{other[0]}" is '
            f"{fault}; take a ViT, DeiT or DINOv2"
        )
    for name in [name for name in state if name.endswith(".gamma")]:
        block, _, scale = name.removesuffix(".gamma").rpartition(".")
        linear, gamma = f"{block}.{'attn.proj' if scale == 'ls1' else 'mlp.fc2'}", state.pop(name)
        # gamma * (W x + b) = (gamma W) x + gamma b
        state[f"{linear}.weight"] = gamma[:, None] * state[f"{linear}.weight"]
        state[f"{linear}.bias"] = gamma * state[f"{linear}.bias"]
    patches = [f"patch_embed.proj.{name}" for name in ("weight", "bias")]
    folded = fold_normalization(state[patches[0]], state[patches[1]], mean, std)
    state |= zip(patches, folded, strict=True)
    # Tokens that have no position there get one of zeros.
    positions, rows = state["pos_embed"], config.grid[0] * config.grid[1]
    known = positions.shape[1] - rows
    zeros = positions.new_zeros(1, max(0, 1 + config.registers - known), config.width)
    state["pos_embed"] = torch.cat((positions[:, :known], zeros, positions[:, known:]), dim=1)
    return replace(donor, state=state)
