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
    *("kaiming_uniform_", "kaiming_normal_", "orthogonal_", "zero_", "fill_", "erfinv_"),
}
"""methods of tensors and functions of `torch.nn.init` that change values alone"""
_WITH_NUMBERS = {"mul_", "add_", "clamp_"}
"""that do where they are given numbers; with another tensor shapes may not fit, which must be told"""


class _Unset(TorchFunctionMode):
    """Leaves out what sets values: there are none, and torch imports its compiler to work out their shapes."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        numbers = name in _WITH_NUMBERS and not any(isinstance(value, Tensor) for value in args[1:])
        if numbers or name in _SET_VALUES:
            target = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(target, Tensor) and target.is_meta:
                return target
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """What is made in the block lies on "meta", and its first weights are not drawn."""
    with torch.device("meta"), _Unset():
        yield
