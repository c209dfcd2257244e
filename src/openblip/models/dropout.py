"""Dropout whose draws do not take longer than the layer that they are for, on a CPU.

torch draws a Bernoulli number at a time there, 7 ns each on one thread: a quarter of a training step of BLIP-2's
stage 1 (docs/performance.md). A draw of 64 random bits decides about four elements here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["apply_dropout"]

_LEVELS = 2**16
"""of a draw of 16 bits: the probability is rounded to 1 in 65,536"""


def apply_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout`: elements are zero with probability p, the rest is divided by 1 - p.

    Draws follow torch's seed; on a CPU they are others than torch's own dropout would make of it.
    """
    level = round(p * _LEVELS)
    if not training or not 0 < level < _LEVELS or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    return x * _noise(x, level)


@torch.no_grad()
def _noise(x: Tensor, level: int) -> Tensor:
    """As `x`: 0 with probability p = level / 65,536, else 1 / (1 - p)."""
    count = x.numel()
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    kept = draws.view(torch.int16)[:count] >= level - _LEVELS // 2
    return kept.view(x.shape).to(x.dtype).mul_(_LEVELS / (_LEVELS - level))
