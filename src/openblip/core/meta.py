"""Modules on torch's device "meta", whose tensors have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["on_meta"]

_SET_VALUES = {
    *("normal_", "uniform_", "trunc_normal_", "constant_", "zeros_", "ones_", "xavier_uniform_", "xavier_normal_"),
    *("kaiming_uniform_", "kaiming_normal_", "orthogonal_", "zero_", "fill_", "erfinv_", "mul_", "add_", "clamp_"),
}
"""methods of tensors and functions of `torch.nn.init` that change values alone"""


class _Unset(TorchFunctionMode):
    """Leaves out what sets values: there are none, and torch imports its compiler to work out their shapes."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _SET_VALUES:
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, Tensor) and target.is_meta:
                return target
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """What is made in the block lies on "meta", and its first weights are not drawn."""
    with torch.device("meta"), _Unset():
        yield
