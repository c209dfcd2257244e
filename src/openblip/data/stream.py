"""The loader: any sources in, uint8 batches out, sharded over ranks, exactly resumable, decoded beside training.

The order of samples is a pure function of (seed, epoch) (see `order`), and every random choice for a sample
(its text, its crop) comes from a generator made of (seed, epoch, position). So neither the number of workers
nor a stop and resume changes a single pixel, and the state to save is the number of samples delivered.

    loader = Loader([open_source("tars/")], pretraining_transform(224), batch_size=64, seed=1, num_workers=2)
    for batch in loader:                        # one epoch; loader.epoch counts up at its end
        embeds = model.encode_pixels(batch.images)   # normalised on the device
        saved = loader.state_dict()             # load_state_dict(saved) continues after this batch

With worker processes, batches cross by shared memory; with `num_workers=0` a thread decodes ahead (image codecs
let go of Python's lock). A broken sample is replaced by another of the same source, drawn from the same
generator, and reported once, when its own turn in the epoch comes; what measures leaves it out instead.
"""

from __future__ import annotations

import functools
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from openblip.core.errors import UserError, first_line
from openblip.core.interrupt import end_with_parent, starting_workers
from openblip.data.batches import BatchMaker, Reply, Request, TextMode, Transform
from openblip.data.clean import CleanText
from openblip.data.images import MAX_PIXELS
from openblip.data.order import EpochOrder, Order, Part
from openblip.data.sample import Batch, SkipLog
from openblip.data.sources.base import Source

__all__ = ["Loader"]


class Loader:
    """An endless stream of batches in epochs, with a position that can be saved.

    Args:
        sources: at least one; `weights` (or none) gives each its share of an epoch.
        transform: image and generator to uint8 [3, S, S], applied to each image of a sample; its `min_side`, if
            it has one, lets large JPEGs be decoded smaller.
        batch_size: samples on this rank; a global batch has `batch_size * world_size`, of which rank r takes
            the r-th slice, so that the samples of a step do not depend on how many ranks share it.
        num_workers: processes that decode; 0 decodes in a thread of this process.
        drop_last: leave out the last, smaller global batch of an epoch. Else it is shared out evenly; ranks
            that would get nothing take a copy of its first sample (with `leave_out` they take nothing).
        text_mode: one text for each image at "random" or the "first", "all" (see `Batch.image_index`), "any": all,
            and no text is no mistake, "none".
        clean: "simplify" as the papers do, "spaces" for other languages and cased vocabularies, "none".
        max_words: captions are cut after so many words (not with clean="none").
        epoch_shares: part of each source that an epoch takes; None takes all of each.
        length: samples in an epoch; default: the sum of the sizes.
        num_images: that each sample has to have.
        max_pixels: larger images are "too-large".
        max_substitutes: how many samples in a row may be broken before the source counts as broken.
        leave_out: nothing takes the place of a broken sample, as a measure demands: its batch is smaller, or is not
            given where it would be empty, so that ranks may give unequal numbers of batches.
        draw_by_key: the random choices for a sample depend on the seed and its key, and not on its place.
        skip_log: a file for the broken samples, one JSON line each; all ranks may share it. Or a log.
        prefetch: batches made ahead (by each worker).

    Raises:
        UserError: nothing to read, fewer samples than one global batch with `drop_last`, or a source with another
            number of images.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        text_mode: TextMode = "random",
        clean: CleanText = "simplify",
        max_words: int | None = 30,
        weights: Sequence[float | None] | None = None,
        epoch_shares: Sequence[float] | None = None,
        length: int | None = None,
        num_images: int = 1,
        max_pixels: int = MAX_PIXELS,
        max_substitutes: int = 200,
        leave_out: bool = False,
        draw_by_key: bool = False,
        skip_log: SkipLog | Path | str | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._sources = list(sources) if isinstance(sources, Sequence) else [sources]
        if not self._sources:
            raise UserError("no data source is given")
        for source in self._sources:
            if source.num_images != num_images:
                several = f"{source.num_images} image{'s' * (source.num_images > 1)} for each sample"
                raise UserError(f"{source.name} has {several}, and {num_images} are read here")
        if len(counts := {source.frames for source in self._sources}) > 1:
            several = " and ".join(f"{source.frames} of {source.name}" for source in self._sources)
            raise UserError(
                f"sources of different numbers of frames ({several}, 0 are images) make no batch; give each the "
                f"same frames={max(counts)}"
            )
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        shares = [1.0] * len(self._sources) if epoch_shares is None else epoch_shares
        parts = [
            Part(len(source), source.blocks, source.window, share)
            for source, share in zip(self._sources, shares, strict=True)
        ]
        self._order = Order(parts, seed=seed, shuffle=shuffle, weights=weights, length=length)
        self._batch_size, self._rank, self._world_size, self._seed = batch_size, rank, world_size, seed
        self._drop_last, self._leave_out = drop_last, leave_out
        if drop_last and self._order.num_samples < self._global_batch:
            raise UserError(
                f"an epoch holds {self._order.num_samples} samples, too few for one batch of {self._global_batch}"
                f"; lower batch_size to {max(1, self._order.num_samples // world_size)} or add data"
            )
        maker = BatchMaker(
            self._sources,
            transform,
            seed=seed,
            text_mode=text_mode,
            clean=clean,
            max_words=max_words,
            max_pixels=max_pixels,
            max_substitutes=max_substitutes,
            leave_out=leave_out,
            draw_by_key=draw_by_key,
        )
        self._engine = _Workers(maker, self._requests, num_workers, prefetch, pin_memory)
        self.epoch = 0
        """The epoch that is being read, or the next one between two epochs."""
        self.skipped = skip_log if isinstance(skip_log, SkipLog) else SkipLog(skip_log)
        self._delivered = 0  # global samples of this epoch that have left the loader

    @property
    def _global_batch(self) -> int:
        return self._batch_size * self._world_size

    @property
    def num_samples(self) -> int:
        """Samples in an epoch over all ranks, before a last batch is dropped."""
        return self._order.num_samples

    def __len__(self) -> int:
        """Batches in an epoch (the same on every rank)."""
        batches = self._order.num_samples / self._global_batch
        return math.floor(batches) if self._drop_last else math.ceil(batches)

    def describe(self) -> dict[str, Any]:
        """Return what is read, for the run's log."""
        return {
            "sources": [
                {**source.describe(), "samples_each_epoch": quota}
                for source, quota in zip(self._sources, self._order.quotas, strict=True)
            ],
            "num_samples": self.num_samples,
            "num_batches": len(self),
        }

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from the current position to the end of the epoch."""
        if self._delivered == 0:
            self._report_bad_rows()
        replies = self._engine.run()
        try:
            for reply in replies:
                for broken, source in reply.skipped:
                    self.skipped.add(broken, epoch=self.epoch, source=source)
                if reply.failure:
                    raise UserError(reply.failure)
                self._delivered = min(self._delivered + self._global_batch, self._order.num_samples)
                if reply.batch is not None:
                    yield reply.batch
        finally:
            replies.close()
        self.epoch += 1
        self._delivered = 0

    def rewind(self) -> None:
        """Go back to the beginning of the current epoch (after an iteration that was broken off)."""
        self._delivered = 0

    def close(self) -> None:
        """End the worker processes; the loader may be iterated again, which starts new ones."""
        self._engine.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the batch yielded last, and what it depends on."""
        return {
            "epoch": self.epoch,
            "delivered": self._delivered,
            "seed": self._seed,
            "quotas": self._order.quotas,
            "sizes": [len(source) for source in self._sources],
            "data": self._fingerprints,
            "global_batch": self._global_batch,
            "skipped": self.skipped.state_dict(),
        }

    @functools.cached_property
    def _fingerprints(self) -> list[str]:
        """Of each source; made when a position is first saved, so that nobody else waits for it."""
        return [source.fingerprint() for source in self._sources]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken; the number of ranks and workers may differ.

        Raises:
            UserError: the data, the seed or the global batch are not those of the state.
        """
        mine = self.state_dict()
        said = {
            "seed": "the seed",
            "sizes": "the number of samples in each source",
            "quotas": "the mix of sources",
            "global_batch": "the batch size times the number of processes",
        }
        for name, words in said.items():
            if state[name] != mine[name]:
                raise UserError(
                    f"cannot resume: {words} was {state[name]} and is now {mine[name]}; "
                    "resume with the same data settings, or start a new run from the saved model"
                )
        # A run saved by an earlier version holds no fingerprints.
        before = state.get("data", mine["data"])
        if before != mine["data"]:
            pairs = zip(self._sources, before, mine["data"], strict=True)
            changed = [source.name for source, old, new in pairs if old != new]
            raise UserError(
                f"cannot resume: the data of {' and '.join(changed)} have changed since the run was saved (names, "
                "texts, ids or sizes); resume with the data as they were, or start a new run from the saved model"
            )
        self.epoch, self._delivered = int(state["epoch"]), int(state["delivered"])
        self.skipped.load_state_dict(state["skipped"])

    def _report_bad_rows(self) -> None:
        """Count what was unreadable when the sources were opened: each rank its share."""
        for source in self._sources:
            for broken in source.bad_rows[self._rank :: self._world_size]:
                self.skipped.add(broken, epoch=self.epoch, source=source.name)

    def _requests(self) -> Iterator[Request]:
        """Return the requests from the current position to the end of the epoch."""
        order, epoch = self._order.epoch(self.epoch), self.epoch
        size = self._global_batch
        end = len(order) - (len(order) % size if self._drop_last else 0)
        starts = range(self._delivered, end, size)
        return (self._request(order, epoch, first, min(first + size, end)) for first in starts)

    def _request(self, order: EpochOrder, epoch: int, first: int, last: int) -> Request:
        """Return this rank's slice of the global batch first..last."""
        bounds = np.linspace(first, last, self._world_size + 1).round().astype(np.int64)
        positions = np.arange(bounds[self._rank], bounds[self._rank + 1])
        if not len(positions) and not self._leave_out:
            positions = np.array([first])
        sources = None if order.sources is None else order.sources[positions]
        return Request(epoch, positions, sources, order.indices[positions])


class _Workers:
    """Turns requests into replies, in order, ahead of their use: by processes, or by one thread."""

    def __init__(
        self,
        maker: BatchMaker,
        requests: Callable[[], Iterator[Request]],
        num_workers: int,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        self._maker, self._requests = maker, requests
        self._num_workers, self._prefetch, self._pin_memory = num_workers, max(1, prefetch), pin_memory
        self._processes: DataLoader[Reply] | None = None
        # torch's DataLoader draws a number at each epoch; nothing here may touch the global generator.
        self._generator = torch.Generator()

    def run(self) -> Any:
        """Return a generator of replies to the requests from the current position on."""
        return self._by_processes() if self._num_workers > 0 else self._by_thread()

    def close(self) -> None:
        self._processes = None

    def _by_processes(self) -> Iterator[Reply]:
        if self._processes is None:
            self._processes = DataLoader(
                self._maker,
                batch_size=None,
                sampler=_Sampler(self._requests),
                num_workers=self._num_workers,
                prefetch_factor=self._prefetch,
                collate_fn=_as_is,
                pin_memory=self._pin_memory,
                worker_init_fn=_begin_worker,
                generator=self._generator,
                persistent_workers=True,
            )
        try:
            try:
                with starting_workers():
                    replies = iter(self._processes)
                yield from replies
            except (ConnectionError, EOFError):
                self._processes = None
                # A worker that is killed while it hands a tensor over breaks the connection some moments before its
                # end is known, at which torch's handler of SIGCHLD raises here.
                time.sleep(_END_KNOWN_AFTER)
                raise
        except RuntimeError as error:
            self._processes = None
            if not _WORKER_DIED.search(str(error)):
                raise
            raise UserError(
                f"a process that decodes images has ended ({first_line(error)}), mostly for lack of memory "
                "or of shared memory (/dev/shm); lower num_workers or batch_size (0 workers need no shared memory)"
            ) from error

    def _by_thread(self) -> Iterator[Reply]:
        ready: queue.Queue[Reply | BaseException | None] = queue.Queue(self._prefetch)
        stop = threading.Event()

        def put(item: Reply | BaseException | None) -> None:
            while not stop.is_set():
                with suppress(queue.Full):
                    ready.put(item, timeout=0.1)
                    return

        requests = self._requests()

        num_threads = torch.get_num_threads()
        started = threading.Event()

        def work() -> None:
            # One image is too little work to share among cores. The setting is each thread's own once the
            # thread has requested it, but also what later threads start from: put back below.
            torch.get_num_threads()
            torch.set_num_threads(1)
            started.set()
            try:
                for request in requests:
                    if stop.is_set():
                        return
                    reply = self._maker[request]
                    put(reply.pin_memory() if self._pin_memory else reply)
                put(None)
            except BaseException as error:  # noqa: BLE001  raised again where the batch is requested
                put(error)

        thread = threading.Thread(target=work, name="openblip-loader", daemon=True)
        thread.start()
        started.wait()
        torch.set_num_threads(num_threads)
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


class _Sampler:
    """Hands the requests to torch's DataLoader as if they were indices."""

    def __init__(self, requests: Callable[[], Iterator[Request]]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return self._requests()


_END_KNOWN_AFTER = 3.0
"""seconds within which a worker that broke its connection is known to have ended"""
_WORKER_DIED = re.compile(r"DataLoader worker.*(killed|exited)", re.DOTALL)


def _begin_worker(_worker: int) -> None:
    end_with_parent()


def _as_is(reply: Any) -> Any:
    return reply
