"""Whether a function can be recorded as a CUDA graph: seen from its operations, before a recording fails.

A recording that fails leaves parts of torch 2.11 in the middle of it, so it is not tried where an operation would
wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["WaitsForDevice", "refusing_waits"]

_READ_VALUES = frozenset(
    {
        *("_local_scalar_dense", "nonzero", "masked_select", "equal"),
        *("unique_consecutive", "_unique2", "unique_dim", "repeat_interleave"),
    }
)
"""operations that read a value, or whose result has a size that depends on values"""


class WaitsForDevice(RuntimeError):
    """An operation would make the host wait for the device."""


class refusing_waits(TorchDispatchMode):
    """Within, an operation that would wait for a GPU is refused, on a CPU too; what a custom operation does inside
    is not seen.

    Raises:
        WaitsForDevice: names the operation.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        if name in _READ_VALUES or (name.startswith("index") and _by_mask(args)):
            raise WaitsForDevice(f"{name} reads a value of the device")
        result = func(*args, **(kwargs or {}))
        tensors += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        # A constant of Python's numbers is made on the host, and copied before it is seen here.
        if (name in ("_to_copy", "copy_") and len(devices) > 1) or (name == "lift_fresh" and "cuda" in devices):
            raise WaitsForDevice(f"{name} copies between the host and the device")
        return result


def _by_mask(args: Any) -> bool:
    """Whether `index` or `index_put` chooses by a mask, whose true places are counted on the host."""
    chosen = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in chosen)
