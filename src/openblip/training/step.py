"""What the loop asks of a module, a loader and the functions given to it. Everything optional is found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = [
    "Evaluate",
    "Export",
    "HasCheckpointing",
    "HasCounts",
    "HasFrozenNames",
    "HasProgress",
    "HasWholeLayers",
    "Loader",
    "Prepare",
    "Step",
]

Prepare = Callable[[Any], Any]
"""What comes from the loader -> what the module's forward takes; the loop puts the result on the device."""
Evaluate = Callable[[nn.Module, int], dict[str, float]]
"""The module in evaluation mode and the step -> metrics by name; called on every process, the first's are kept."""
Export = Callable[[Path], None]
"""Writes the usable model into the folder given; called on the first process."""


class Step(Protocol):
    """A model with its loss: an `nn.Module` whose forward takes a batch and names its losses.

    The key "loss" is what is minimised; every scalar is logged. A batch's loss is the mean over its own rows; the
    loop takes the mean over micro-batches and processes (see `HasCounts`).
    """

    def __call__(self, batch: Any) -> dict[str, Tensor]: ...


@runtime_checkable
class HasProgress(Protocol):
    """Optional: a module that wants to know how far training is."""

    def set_progress(self, epoch: float, new_step: bool) -> None:
        """Called before each micro-batch: epochs done with fraction, and whether it is the first of its step."""
        ...


@runtime_checkable
class HasCounts(Protocol):
    """Optional: a module with means over something that batches hold unequally much of (tokens)."""

    def count_step(self, batches: Sequence[Any]) -> None:
        """Called on every process before each step, with its micro-batches as prepared, not yet on the device."""
        ...


@runtime_checkable
class HasCheckpointing(Protocol):
    """Optional: a module that can recompute activations instead of keeping them."""

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """For the share of its blocks, 0 to 1."""
        ...


@runtime_checkable
class HasFrozenNames(Protocol):
    """Optional: a module with parameters that stay what they were loaded as, so that no checkpoint holds them."""

    def frozen_parameter_names(self) -> set[str]: ...


@runtime_checkable
class HasWholeLayers(Protocol):
    """Optional: a module with parts that are also used outside of their own forward, where FSDP2 gathers them."""

    def whole_layers(self) -> set[str]:
        """Names of their classes."""
        ...


class Loader(Protocol):
    """Batches of one process, the same number on every process; the position is exact in mid-epoch.

    Iterating continues from the position to the end of the epoch. `state_dict` counts batches handed out, not
    prefetched, and holds plain values (it is written as JSON).
    """

    epoch: int

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
