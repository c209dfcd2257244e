"""What towers of every source share: an encoder with what is known about it, its blocks, and its tokens.

Shapes: B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError, first_line
from openblip.models.pixels import IMAGE_MEAN, IMAGE_STD, Triple

__all__ = [
    "Encoder",
    "TokenEncoder",
    "block_list",
    "check_whole_patches",
    "drop_last_blocks",
    "examined",
    "settled_drop",
    "unread_parameters",
]

_BLOCKS = ("blocks", "layers", "layer")
_NORMS = ("norm", "fc_norm", "layernorm", "layer_norm", "post_layernorm", "rms_norm")
_MOST_FIRST = 3
"""tokens that may stand before the patches: [CLS], one for distillation, ..."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder, and what has to be known to use it."""

    module: nn.Module
    """normalised images [B, 3, H, W] -> tokens [B, N, D]"""
    width: int
    """D"""
    grid: tuple[int, int]
    """rows and columns of the patches, which are the last of the N tokens, row by row"""
    first: int = 1
    """tokens before those of the patches: 1 for [CLS], 0 where there is none"""
    pixels: tuple[int, int]
    """height and width of the images"""
    mean: Triple = IMAGE_MEAN
    std: Triple = IMAGE_STD
    drop_layers: int = 0
    """blocks that were left out"""


class TokenEncoder(nn.Module):
    """What encoders of other libraries share: what they give is turned into tokens.

    Args:
        first: tokens before the registers, [CLS] if there is one.
        registers: register tokens. They hold no part of the image, and are left out as for any dense use.
        channels_last: feature maps are [B, H, W, D] and not [B, D, H, W].
    """

    def __init__(self, *, first: int = 1, registers: int = 0, channels_last: bool = False) -> None:
        super().__init__()
        self._first, self._registers, self._channels_last = first, registers, channels_last

    def tokens(self, found: Tensor) -> Tensor:
        """Tokens [B, N, D] of a feature map [B, D, H, W] or [B, H, W, D], or of all tokens [B, M, D]."""
        if found.ndim == 4:
            return (found if self._channels_last else found.permute(0, 2, 3, 1)).flatten(1, 2)
        if not self._registers:
            return found
        return torch.cat((found[:, : self._first], found[:, self._first + self._registers :]), dim=1)


def block_list(encoder: nn.Module) -> tuple[str, Sequence[nn.Module]] | None:
    """Name and blocks of a transformer; None where there is no one list of equal blocks, as in a CNN."""
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
    # A CNN may be one list of convolutions (EfficientNet, MobileNet), whose kernels are no matrices.
    if not any(parameter.ndim == 2 for parameter in lists[name].parameters()):
        return None
    return name, list(lists[name])


def check_whole_patches(name: str, side: int, patch: int) -> None:
    """Refuse a size that was asked for and does not consist of whole patches.

    Raises:
        UserError: names the nearest sizes that do.
    """
    if side % patch:
        less = side // patch * patch
        raise UserError(
            f'"{name}" cuts images into patches of {patch} pixels, of which {side} is no multiple; '
            f"take {f'{less} or ' if less else ''}{less + patch} pixels"
        )


def settled_drop(encoder: nn.Module, count: int | None) -> int:
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
            f"{type(encoder).__name__} has stages in place of one list of blocks to leave {count} out of; "
            "set drop_layers to 0 (SOURCE@0)"
        )
    name, blocks = found
    if count >= len(blocks):
        raise UserError(f"a tower of {len(blocks)} blocks cannot be without {count}; lower drop_layers")
    kept = blocks[:-count]
    as_list = isinstance(encoder.get_submodule(name), nn.ModuleList)
    encoder.set_submodule(name, nn.ModuleList(kept) if as_list else nn.Sequential(*kept))
    for norm in _NORMS:
        if isinstance(getattr(encoder, norm, None), nn.Module):
            setattr(encoder, norm, nn.Identity())


@torch.no_grad()
def examined(
    module: TokenEncoder,
    source: str,
    *,
    pixels: tuple[int, int],
    mean: Triple,
    std: Triple,
    drop_layers: int,
    own: tuple[int, int] | None = None,
) -> Encoder:
    """An encoder with what a blank image shows of it: width and place of its tokens.

    Args:
        own: the size of images that its configuration names, for a message.

    Raises:
        UserError: it does not take images of this size, gives no tokens of patches, or computes on behind its
            blocks where some of them are left out.
    """
    weight, training, seen = next(module.parameters()), module.training, list[Tensor]()
    blocks = block_list(module)
    hook = blocks and blocks[1][-1].register_forward_hook(lambda _part, _given, output: seen.append(output))
    module.eval()
    try:
        found = module(torch.zeros(1, 3, *pixels, dtype=weight.dtype, device=weight.device))
    except (ValueError, RuntimeError, TypeError, AttributeError, AssertionError, LookupError) as error:
        size, other = (" x ".join(map(str, sides)) for sides in (pixels, own or ()))
        hint = f"; its own are of {other}" if own not in (None, pixels) else ""
        raise UserError(f"{source} does not take images of {size} pixels: {first_line(error)}{hint}") from error
    finally:
        module.train(training)
        if hook:
            hook.remove()
    grid = _grid(found.shape[1], pixels) if isinstance(found, Tensor) and found.ndim == 3 else None
    if grid is None:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{source} gives {shape}, and no tokens [1, N, D] of the patches of an image")
    if drop_layers and not found.is_meta and not torch.equal(module.tokens(_plain(seen[-1])), found):
        raise UserError(f"{source} computes on behind its blocks, so none is left out; name it {source}@0")
    return Encoder(
        module=module,
        width=found.shape[2],
        grid=grid,
        first=found.shape[1] - grid[0] * grid[1],
        pixels=pixels,
        mean=mean,
        std=std,
        drop_layers=drop_layers,
    )


@torch.enable_grad()
def unread_parameters(encoder: nn.Module, pixels: tuple[int, int]) -> list[nn.Parameter]:
    """Those that no token depends on, such as a mask's token and what pools the tokens, by a pass of one image."""
    weight, training = next(encoder.parameters()), encoder.training
    encoder.eval()
    tokens = encoder(torch.zeros(1, 3, *pixels, dtype=weight.dtype, device=weight.device))
    encoder.train(training)
    read: set[int] = set()
    seen, waiting = set[Any](), [tokens.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            read.add(id(getattr(node, "variable", None)))
            waiting += [following for following, _ in node.next_functions]
    return [
        parameter for parameter in encoder.parameters() if parameter.requires_grad and id(parameter) not in read
    ]


def _plain(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _grid(tokens: int, pixels: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of the patches among `tokens`, in the shape of the image; as few as possible before them."""
    height, width = pixels
    for patches in range(tokens, max(tokens - _MOST_FIRST, 1), -1):
        rows = max(round((patches * height / width) ** 0.5), 1)
        if rows * (patches // rows) == patches and abs(patches // rows - rows * width / height) < 1:
            return rows, patches // rows
    return None
