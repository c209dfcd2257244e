"""What a task says of itself: how each family trains on it, and how a model is evaluated on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from openblip.data.sample import Batch
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import Source
from openblip.data.sources.open import open_source
from openblip.tasks.config import RunConfig
from openblip.tasks.feature_cache import FeatureCache
from openblip.tasks.step import Training

__all__ = ["Batches", "Evaluation", "RunData", "Task"]


class Batches(Protocol):
    """The evaluation data, from the beginning each time."""

    def __call__(self, *, as_written: bool = False) -> Iterator[Batch]:
        """Batches; `as_written` gives the texts as the data have them, for measures with their own tokenization."""
        ...


Evaluation = tuple[dict[str, float], list[dict[str, object]]]
"""Metrics by name, and one record for each image or question."""


@dataclass(frozen=True)
class RunData:
    """The data of a run."""

    sources: Sequence[Source]
    out: Path
    """the run's folder"""
    cache: FeatureCache | None = None
    """features in place of images"""


@dataclass(frozen=True)
class Task:
    """What can be trained and evaluated."""

    train: dict[str, Callable[[RunConfig, Any, RunData], Training]]
    """For each family the step over its adapter's model, and what prepares batches."""
    evaluate: Callable[[RunConfig, Any, Batches, Sequence[str]], Evaluation]
    """Of an adapter; the last argument are answers to choose from."""
    open: Callable[[SourceConfig], Source] = open_source
    """The task's view of a source."""
    single: frozenset[str] = frozenset()
    """Families that train on one text an image: samples with several are taken apart."""
    num_images: int = 1
    """Of each sample."""
    cleans: bool = True
    """Whether the loader cleans texts; a task whose texts are looked up as they were given does it itself."""
