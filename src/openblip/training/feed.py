"""Between a loader and the loop: batches one after another over epochs, and the time that training takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openblip.training.compiling import uncompiled
from openblip.training.launch import unsharded
from openblip.training.state import own_generators
from openblip.training.step import Loader, Prepare

__all__ = ["Feed", "Stopwatch", "beside_training", "num_rows"]


class Feed:
    """Hands out a loader's batches and ends its epochs, so that its position never lies at an epoch's very end."""

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self.loader = loader
        self.device = device
        self._iterator: Iterator[Any] | None = None

    def next(self) -> Any:
        """The next batch of this epoch."""
        if self._iterator is not None:
            batch = next(self._iterator, None)
        else:
            # Starting a loader may draw from the global generators (torch's does); a resumed run starts it again.
            with own_generators(self.device):
                self._iterator = iter(self.loader)
                batch = next(self._iterator, None)
        assert batch is not None, "the loader gave fewer batches than its length"
        return batch

    def take(self, count: int, prepare: Prepare | None) -> tuple[list[Any], int]:
        """The next `count` batches, prepared, and how many samples they hold."""
        batches = [self.next() for _ in range(count)]
        rows = sum(num_rows(batch) for batch in batches)
        return (batches if prepare is None else [prepare(batch) for batch in batches]), rows

    def end_epoch(self, epoch: int) -> None:
        """Let the loader notice that epoch number `epoch` is over."""
        assert self._iterator is not None
        with own_generators(self.device):
            extra = next(self._iterator, None)
        assert extra is None, "the loader gave more batches than its length"
        self._iterator = None
        # Some loaders count epochs themselves when they are exhausted.
        if self.loader.epoch == epoch:
            self.loader.epoch += 1


def num_rows(batch: Any) -> int:
    """Samples in a batch: its length, or that of its first tensor."""
    values = list(batch.values()) if isinstance(batch, Mapping) else batch
    if isinstance(values, tuple | list):
        return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), len(values))
    return len(batch)


class Stopwatch:
    """Seconds of a run over all its sessions, those of training alone, and of these since the last mark."""

    def __init__(self, before: float, trained: float = 0.0) -> None:
        self.before, self._trained = before, trained
        self._start = self._mark = time.perf_counter()
        self._paused = 0.0

    def total(self) -> float:
        """Seconds in all sessions."""
        return self.before + time.perf_counter() - self._start

    def training(self) -> float:
        """Seconds in all sessions, without what was paused."""
        return self._trained + time.perf_counter() - self._mark - self._paused

    def lap(self) -> float:
        """Seconds since the last call, without what was paused."""
        now = time.perf_counter()
        elapsed, self._mark, self._paused = now - self._mark - self._paused, now, 0.0
        self._trained += elapsed
        return max(1e-9, elapsed)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time within is not counted as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - began


@contextmanager
def beside_training(watch: Stopwatch, module: nn.Module, device: torch.device) -> Iterator[None]:
    """For evaluating and exporting: neither time nor generators are training's, the module is whole and eager."""
    with watch.pause(), own_generators(device), unsharded(module), uncompiled(module), torch.no_grad():
        yield
