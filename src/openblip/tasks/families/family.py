"""What a family of models says of itself: how it is built for training and adapted to the tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openblip.data.sources.base import Source
from openblip.tasks.config import RunConfig
from openblip.tasks.protocols import Adapter

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """A kind of model."""

    name: str
    build: Callable[[RunConfig, Sequence[Source], Path], Adapter]
    """The model that a run trains; the path is the run's folder."""
    adapters: dict[type, type[Adapter]]
    """For each class of model its adapter."""
