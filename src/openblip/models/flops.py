"""torch's counter of floating-point operations, told of the products that `models.products` asks oneDNN for.

Apart from those, since torch imports Triton for it, which counting alone needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from openblip.core.compute import this_cpu

__all__ = ["FlopCounterMode", "flop_registry"]


def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x_shape) * weight_shape[0]


if this_cpu().has_onednn:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)
