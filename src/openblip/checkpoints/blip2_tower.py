"""BLIP-2's vision tower as a plain Vision Transformer, which other formats hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.models.blip2 import Blip2
from openblip.models.configs import TowerConfig, VisionConfig
from openblip.models.tower import make_tower
from openblip.models.vision import VisionEncoder

__all__ = ["with_own_vision"]


def with_own_vision(model: Blip2, theirs: str) -> Blip2:
    """The model over a tower whose sizes are written out.

    Args:
        theirs: the model of another format that is to hold it, for the message.

    Raises:
        UserError: its tower computes otherwise than a plain Vision Transformer.
    """
    config, encoder = model.config.vision, model.vision.encoder
    own = config.own
    if own is not None and not own.final_norm and own.stem == "patch" and not own.registers:
        return model
    own = None
    if isinstance(encoder, VisionEncoder):
        own, state = replace(encoder.config, depth=len(encoder.vit.blocks)), encoder.vit.state_dict()
    elif config.kind == "timm":
        found = _plain(encoder.vit)
        own, state = found if found is not None else (None, {})
    if own is None or own.stem != "patch" or own.registers or any(key.startswith("norm.") for key in state):
        raise UserError(
            f"{theirs} has a plain Vision Transformer whose last norm is the trained one; the tower "
            f"{config.source} computes otherwise, so this model cannot be exported"
        )
    own = replace(own, final_norm=False, pretrained=None)
    tower = make_tower(TowerConfig(source="own", own=own, drop_layers=0))
    tower.encoder.vit.load_state_dict(state)  # type: ignore[union-attr]
    whole = Blip2(replace(model.config, vision=tower.config), tower, model.language)
    whole.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("vision.")}, strict=False
    )
    return whole.eval()


def _plain(vit: Any) -> tuple[VisionConfig, dict[str, Tensor]] | None:
    """Sizes and weights of a timm tower in the names of a plain Vision Transformer, None if it computes otherwise.

    EVA-CLIP's queries and values have a bias, and its keys have none.
    """
    if not hasattr(vit, "blocks") or not hasattr(vit.blocks[0], "attn"):
        return None
    block, patches = vit.blocks[0], vit.patch_embed
    added = [getattr(vit, name, None) for name in ("norm_pre", "rope", "reg_token")]
    added += [getattr(block, name, None) for name in ("ls1", "ls2", "gamma_1", "gamma_2")]
    added += [getattr(block.attn, name, None) for name in ("q_norm", "k_norm", "norm")]
    act = getattr(block.mlp, "act", None)
    if (
        not all(part is None or isinstance(part, torch.nn.Identity) for part in added)
        or getattr(vit, "cls_token", None) is None
        or getattr(vit, "pos_embed", None) is None
        or vit.pos_embed.shape[1] != patches.num_patches + 1
        or patches.proj.bias is None
        or not hasattr(block.mlp, "fc1")
        or type(act).__name__ != "GELU"
        or getattr(act, "approximate", "none") != "none"
        or (block.attn.qkv.bias is None and getattr(block.attn, "q_bias", None) is None)
    ):
        return None
    state = {key: value for key, value in vit.state_dict().items() if not key.endswith("k_bias")}
    for key in [key for key in state if key.endswith("attn.q_bias")]:
        query, value = state.pop(key), state.pop(key.replace("q_bias", "v_bias"))
        state[key.replace("q_bias", "qkv.bias")] = torch.cat((query, torch.zeros_like(query), value))
    width = vit.embed_dim
    side = vit.patch_embed.img_size[0]
    return (
        VisionConfig(
            image_size=side,
            patch_size=vit.patch_embed.patch_size[0],
            width=width,
            depth=len(vit.blocks),
            num_heads=block.attn.num_heads,
            mlp_ratio=block.mlp.fc1.weight.shape[0] / width,
            layer_norm_eps=block.norm1.eps,
        ),
        state,
    )
