"""What vision towers of every source share: an encoder with what is known about it, its blocks, its tokens.

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple

__all__ = ["Encoder", "block_list", "drop_last_blocks", "settle_drop", "tokens_of"]

_BLOCKS = ("blocks", "layers", "layer")
_NORMS = ("norm", "fc_norm", "layernorm", "layer_norm", "post_layernorm", "rms_norm")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder, and what has to be known to use it."""

    module: nn.Module
    """normalised images [B, 3, H, W] -> tokens [B, N, D]"""
    width: int
    """D"""
    pixels: tuple[int, int]
    """height and width of the images"""
    mean: Triple = IMAGE_MEAN
    std: Triple = IMAGE_STD
    drop_layers: int = 0
    """blocks that were left out"""


def block_list(encoder: nn.Module) -> tuple[str, Sequence[nn.Module]] | None:
    """Name and blocks of a transformer; None where there is no one list of equal blocks, as in a CNN of stages."""
    lists = {
        name: module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and name.rpartition(".")[2] in _BLOCKS and len(module)
    }
    if not lists:
        return None
    # A stem of convolutions may be a list of layers too; the blocks are what the tower mostly consists of.
    name = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    kinds = {type(block) for block in lists[name]}
    staged = any(part.isdigit() for part in name.split(".")) or any(other.startswith(f"{name}.") for other in lists)
    if staged or len(kinds) > 1 or issubclass(kinds.pop(), nn.ModuleList | nn.Sequential):
        return None
    return name, list(lists[name])


def settle_drop(encoder: nn.Module, count: int | None) -> int:
    """How many blocks to leave out where `count` may be None: one of a transformer, as in the paper, else none."""
    if count is None:
        return 0 if block_list(encoder) is None else 1
    return count


def drop_last_blocks(encoder: nn.Module, count: int) -> None:
    """Leave the last `count` blocks out, and the final norm, which was made for what they give.

    Raises:
        UserError: there are not as many blocks, or no list of them.
    """
    if count == 0:
        return
    found = block_list(encoder)
    if found is None:
        raise UserError(
            f"{type(encoder).__name__} consists of stages and has no one list of blocks to leave {count} out of; "
            "set drop_layers to 0 (SOURCE@0)"
        )
    name, blocks = found
    if count >= len(blocks):
        raise UserError(f"a tower of {len(blocks)} blocks cannot be without {count}; lower drop_layers")
    encoder.set_submodule(name, type(encoder.get_submodule(name))(*_packed(encoder, name, blocks[:-count])))
    for norm in _NORMS:
        if isinstance(getattr(encoder, norm, None), nn.Module):
            setattr(encoder, norm, nn.Identity())


def _packed(encoder: nn.Module, name: str, blocks: Sequence[nn.Module]) -> tuple[Any, ...]:
    """What the list's own class is made from."""
    return (blocks,) if isinstance(encoder.get_submodule(name), nn.ModuleList) else tuple(blocks)


def tokens_of(found: Tensor, *, first: int = 1, registers: int = 0, channels_last: bool = False) -> Tensor:
    """Tokens [B, N, D] of what an encoder gives: a feature map [B, D, H, W] or [B, H, W, D], or tokens themselves.

    Args:
        first: tokens before the registers, [CLS] if there is one.
        registers: register tokens, which hold no part of the image and are left out.
    """
    if found.ndim == 4:
        return (found if channels_last else found.permute(0, 2, 3, 1)).flatten(1, 2)
    return torch.cat((found[:, :first], found[:, first + registers :]), dim=1) if registers else found
