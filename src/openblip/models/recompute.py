"""Activations computed again in the backward pass in place of kept: less memory for more time, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["first_blocks", "recompute"]


def first_blocks(blocks: Iterable[nn.Module], share: float) -> list[nn.Module]:
    """The first blocks that make up `share` (0 to 1) of all, to the nearest number."""
    found = list(blocks)
    return found[: round(share * len(found))]


def recompute(blocks: Iterable[nn.Module], share: float, *, within: nn.Module | None = None) -> None:
    """Let the first blocks, a `share` of all, keep their inputs alone while they are trained; 0 takes it back.

    What a block draws (dropout) is drawn alike when it is computed again.

    Args:
        within: the module that is trained, where its blocks always stay in evaluation mode.
    """
    listed = list(blocks)
    for block in listed:
        block.__dict__.pop("forward", None)
    for block in first_blocks(listed, share):
        block.forward = partial(_recomputed, block, type(block).forward, within or block)


def _recomputed(
    block: nn.Module, forward: Callable[..., Any], trained: nn.Module, *args: Any, **options: Any
) -> Any:
    if trained.training and torch.is_grad_enabled():
        return checkpoint(forward, block, *args, use_reentrant=False, **options)
    return forward(block, *args, **options)
