"""The engine of one process: requests of one kind are gathered for some milliseconds and computed as a batch.

Images are decoded and texts checked in threads beside the model, and one thread computes. While it does, requests
gather by themselves; when it is free, the oldest request waits `gather_ms` for others of its kind. Work that nobody
waits for any more leaves the queue, and computing stops between two layers when nobody waits for any of a batch.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from openblip.core.errors import UserError, nearest
from openblip.serving.cache import FeatureCache
from openblip.serving.chat_work import Chatting, Growing, Piece, Written
from openblip.serving.engine import Counts, Explaining, ModelInfo, Searching, Work
from openblip.serving.model import Dropped, Read, ServedModel, open_image
from openblip.tasks.predictor import Predictor

__all__ = ["LocalEngine"]


@dataclass
class _Job:
    """Work in the queue."""

    read: Read
    future: asyncio.Future[Any]
    arrived: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.read.work.kind


class LocalEngine:
    """Computes in this process, in one thread; used in one event loop.

    Args:
        predictors: by the ids that clients name them by.
        index: an opened image index, with the id of its model, or None.
        batch_size: work that is computed together.
        gather_ms: how long the oldest request waits for others, where nothing else keeps the model busy.
        cache_bytes: of image features that are kept.
        max_pixels: largest image that is decoded.
    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        *,
        index: tuple[Any, str] | None = None,
        batch_size: int = 16,
        gather_ms: float = 4.0,
        cache_bytes: int = 2**28,
        max_pixels: int = 40_000_000,
    ) -> None:
        self._counts, cache = Counts(), FeatureCache(cache_bytes)
        self._served = {
            name: ServedModel(name, predictor, cache, self._counts, max_pixels=max_pixels)
            for name, predictor in predictors.items()
        }
        self._models = {name: model.info for name, model in self._served.items()}
        self._index, self._max_pixels = index, max_pixels
        self._batch_size, self._gather = batch_size, gather_ms / 1000
        self._waiting: deque[_Job] = deque()
        self._computing: list[_Job] = []
        self._came = asyncio.Event()
        # A thread's number of OpenMP threads is its own once it has set it.
        threads = torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, "model", initializer=torch.set_num_threads, initargs=(threads,))
        self._readers = ThreadPoolExecutor(
            min(4, os.cpu_count() or 1), "decode", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._worker: asyncio.Task[None] | None = None

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """By their ids."""
        return self._models

    @property
    def searchable(self) -> str | None:
        """As `Engine.searchable`."""
        return None if self._index is None else self._index[1]

    @property
    def counts(self) -> Counts:
        """As `Engine.counts`."""
        self._counts.waiting = len(self._waiting)
        return self._counts

    async def run(self, work: Work) -> Any:
        """As `Engine.run`."""
        return await self._run(work)

    async def stream(self, work: Chatting) -> AsyncGenerator[Piece | Written, None]:
        """As `Streams.stream`."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        growing = Growing(lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece))
        task = loop.create_task(self._run(work, growing))
        task.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            written = await task
            for piece in growing.rest(written):
                yield piece
            yield written
        finally:
            task.cancel()

    async def _run(self, work: Work, growing: Growing | None = None) -> Any:
        if work.model not in self._served:
            raise UserError(f'there is no model "{work.model}"{nearest(work.model, self._served)}')
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        read = Read(work)
        if not isinstance(work, Searching):
            try:
                read = await loop.run_in_executor(self._readers, self._served[work.model].read, work)
            except asyncio.CancelledError:
                self._counts.dropped += 1
                raise
        job = _Job(replace(read, growing=growing), loop.create_future())
        self._waiting.append(job)
        self._came.set()
        return await job.future

    async def found(self, number: int, min_side: int) -> Image.Image:
        """As `Engine.found`."""
        assert self._index is not None, "only a search gives ids"
        read = partial(self._index[0].image, number, min_side=min_side, max_pixels=self._max_pixels)
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def close(self) -> None:
        """As `Engine.close`."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        for job in (*self._waiting, *self._computing):
            job.future.cancel()
        for pool in (self._thread, self._readers):
            pool.shutdown(wait=True, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self._computing = await self._next_batch()
            if not batch:
                continue
            self._counts.batches += 1
            self._counts.batched += len(batch)
            results = await loop.run_in_executor(self._thread, self._compute, batch)
            for job, result in zip(batch, results, strict=True):
                if job.future.done():
                    self._counts.dropped += 1
                elif isinstance(result, BaseException):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)

    async def _next_batch(self) -> list[_Job]:
        """Wait for work, gather, and take what is computed next; empty where all of it was dropped meanwhile."""
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        first = self._waiting[0]
        limit = 1 if isinstance(first.read.work, Explaining | Searching) else self._batch_size
        while limit > 1 and (left := first.arrived + self._gather - time.monotonic()) > 0:
            if sum(job.kind == first.kind for job in self._waiting) >= limit:
                break
            self._came.clear()
            try:
                await asyncio.wait_for(self._came.wait(), left)
            except TimeoutError:
                break
        batch: list[_Job] = []
        rest: deque[_Job] = deque()
        for job in self._waiting:
            if job.future.done():
                self._counts.dropped += 1
            elif job.kind == first.kind and len(batch) < limit:
                batch.append(job)
            else:
                rest.append(job)
        self._waiting = rest
        return batch

    # In the thread that computes --------------------------------------------------------------------------

    def _compute(self, batch: Sequence[_Job]) -> list[Any]:
        """The result of each, or the exception that it ends with."""
        try:
            return self._together(batch)
        except Dropped as dropped:
            return [dropped] * len(batch)
        except Exception as error:  # noqa: BLE001  whatever one piece of work does concerns no other
            if len(batch) == 1:
                return [error]
        return [result for job in batch for result in self._compute([job])]

    def _together(self, batch: Sequence[_Job]) -> list[Any]:
        work = batch[0].read.work
        if isinstance(work, Searching):
            return [self._search(work)]
        model = self._served[work.model]
        with model.wanted(lambda: not all(job.future.done() for job in batch)):
            return model.compute([job.read for job in batch])

    def _search(self, work: Searching) -> Any:
        assert self._index is not None, "the endpoint looks at `searchable` first"
        image = None if work.image is None else open_image(work.image, self._max_pixels)
        with torch.no_grad():
            return self._index[0].search(text=work.text, image=image, count=work.count, rerank=work.rerank)
