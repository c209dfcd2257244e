"""The tensors of a module that a file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn  # much is opened without torch

__all__ = ["stored_tensors"]


def stored_tensors(module: nn.Module, *, every_name: bool = False) -> dict[str, Tensor]:
    """Parameters and persistent buffers by their names in the state dict and in its order.

    `state_dict()` itself is no way to read a module whose shards are gathered: FSDP2 splits it again there.

    Args:
        every_name: a shared tensor under each of its names; otherwise under its first name.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for place, part in module.named_modules(remove_duplicate=not every_name):
        buffers = {
            name: value for name, value in part._buffers.items() if name not in part._non_persistent_buffers_set
        }
        for name, value in (*part._parameters.items(), *buffers.items()):
            if value is not None and (every_name or id(value) not in seen):
                seen.add(id(value))
                found[f"{place}.{name}" if place else name] = value.detach()
    return found
