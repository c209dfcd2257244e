"""Samples through the stages: read, decode once, look once, write, score; rows of the table come out.

Images are decoded by threads while the models are at work. A batch is a fixed run of the good samples of a range,
so a range computed anew, by whichever worker, gives the same rows. Where the memory of a GPU does not suffice for a
batch, it and those after it are computed in parts, which changes scores in their last digits at most.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.bootstrap.models import Models
from openblip.bootstrap.ranker import Ranker
from openblip.bootstrap.stages import score, write
from openblip.bootstrap.table import Row, Text
from openblip.core.fingerprint import short_hash
from openblip.core.memory import gpu_lacks_memory
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample, Sample, stable_id
from openblip.data.sources.base import Source
from openblip.data.transforms import evaluation_transform
from openblip.generation.config import DecodeConfig

__all__ = ["Pipeline"]

_BATCHES_AHEAD = 2
_NO_RANDOM = np.random.default_rng(0)
"""the evaluation transform draws nothing"""

Size = int | tuple[int, int]


@dataclass(slots=True)
class _Ready:
    """A sample whose image is decoded, or a row that says why it is not."""

    row: Row
    texts: tuple[str, ...] = ()
    pixels: dict[Size, Tensor] = field(default_factory=dict)
    """uint8 [3, H, W] for each size that a tower reads"""
    image: Image.Image | None = None
    """for a ranker, which has transforms of its own"""


class Pipeline:
    """Models with the settings of a run; `rows` gives the table of a range of samples.

    Args:
        prompt: how written texts begin; None is what the captioner was trained with.
        max_length: tokens of a text that the filter reads.
        threads: that decode images.
        ranker: an outside model for similarities.

    Attributes:
        at_once: images that are computed at a time: `batch_size`, or what the memory of the GPU has sufficed for.
        seconds: spent so far, by stage ("wait for images", "see", "write", "score").
    """

    def __init__(
        self,
        models: Models,
        decode: DecodeConfig,
        *,
        batch_size: int = 32,
        prompt: str | None = None,
        max_length: int = 40,
        threads: int | None = None,
        ranker: Ranker | None = None,
    ) -> None:
        self.models, self.decode, self.batch_size, self.ranker = models, decode, batch_size, ranker
        self.prompt = prompt
        parts = [part for part in (models.captioner, models.filter) if part is not None]
        self.max_length = max_length
        if models.filter is not None:
            self.max_length = min(max_length, models.filter.adapter.max_positions)
        self._transforms = {part.image_size: evaluation_transform(part.image_size) for part in parts}
        self._min_side = max(transform.min_side for transform in self._transforms.values())
        self._threads = threads or max(1, min(8, os.cpu_count() or 1))
        self._device = parts[0].adapter.device
        self.at_once = batch_size
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def rows(
        self,
        source: Source,
        indices: range,
        *,
        known: Sequence[Row] = (),
        on_batch: Callable[[list[Row]], None] | None = None,
    ) -> list[Row]:
        """The rows of samples `indices` of `source`, in their order.

        Args:
            known: the first of them, as `on_batch` was given them.
            on_batch: given the rows up to the end of each whole batch, those that it was not given before.
        """
        rows: list[Row] = []
        for row in known:
            # Two processes may have written to one file; whatever does not continue what came before is left out.
            if row.index == indices.start + len(rows):
                rows.append(row)
        first_with_key: dict[str, int] = {}
        for row in rows:
            first_with_key.setdefault(row.key, row.index)
        rest = range(rows[-1].index + 1, indices.stop) if rows else indices
        given = len(rows)
        batch: list[_Ready] = []
        began = time.perf_counter()
        for ready in self._ready(source, rest):
            row = ready.row
            rows.append(row)
            if row.status == "ok" and row.key in first_with_key:
                row.status = "duplicate-key"
                row.detail = f"sample {first_with_key[row.key]} of the source has the same key"
            first_with_key.setdefault(row.key, row.index)
            if row.status != "ok":
                continue
            batch.append(ready)
            if len(batch) == self.batch_size:
                began = self._spent("wait for images", began)
                self._process(batch)
                if on_batch is not None:
                    on_batch(rows[given:])
                given = len(rows)
                batch, began = [], time.perf_counter()
        if batch:
            self._spent("wait for images", began)
            self._process(batch)
        return rows

    def _spent(self, stage: str, began: float) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] += now - began
        return now

    # Images ---------------------------------------------------------------------------------------------

    def _ready(self, source: Source, indices: range) -> Iterator[_Ready]:
        """Samples in order, decoded ahead of their use."""
        ahead = self.batch_size * _BATCHES_AHEAD
        waiting: deque[_Ready | Future[_Ready]] = deque()
        num_threads = torch.get_num_threads()
        with ThreadPoolExecutor(self._threads, "openblip-decode", initializer=_one_thread) as pool:
            for index in indices:
                # Sources are read by this thread alone: not all of them may be read by several.
                try:
                    waiting.append(pool.submit(self._decode, source[index], index))
                except BrokenSample as broken:
                    waiting.append(_broken(broken, index, broken.key or f"{source.name}[{index}]"))
                if len(waiting) > ahead:
                    yield _result(waiting.popleft())
                torch.set_num_threads(num_threads)
            while waiting:
                yield _result(waiting.popleft())

    def _decode(self, sample: Sample, index: int) -> _Ready:
        try:
            image = decode_image(sample, min_side=self._min_side)
        except BrokenSample as broken:
            return _broken(broken, index, sample.key)
        pixels = {size: transform(image, _NO_RANDOM) for size, transform in self._transforms.items()}
        digest = short_hash(next(iter(pixels.values())).numpy().tobytes())
        row = Row(
            key=sample.key,
            index=index,
            image_id=sample.image_id or sample.key,
            image_hash=digest,
            meta=sample.meta,
            captioner=self.models.captioner.fingerprint if self.models.captioner else "",
            filter=self.models.filter.fingerprint if self.models.filter else "",
            ranker=self.ranker.fingerprint if self.ranker is not None else "",
            seed=self.decode.seed,
        )
        return _Ready(row, sample.texts, pixels, image if self.ranker is not None else None)

    # Stages -----------------------------------------------------------------------------------------------

    def _process(self, batch: Sequence[_Ready]) -> None:
        """Fill in the texts of a batch's rows, all at once or as many as there is memory for."""
        done = 0
        while done < len(batch):
            part = batch[done : done + self.at_once]
            if self._fits(part):
                done += len(part)
            else:
                self.at_once = (len(part) + 1) // 2
                torch.cuda.empty_cache()

    def _fits(self, part: Sequence[_Ready]) -> bool:
        """Fill in the texts; False where the GPU has too little memory, unless for a single image."""
        try:
            self._fill_in(part)
        except RuntimeError as error:
            if len(part) == 1 or not gpu_lacks_memory(error):
                raise
            return False  # what the error's frames hold is free once this function has ended
        return True

    @torch.inference_mode()
    def _fill_in(self, batch: Sequence[_Ready]) -> None:
        began = time.perf_counter()
        models = self.models
        pixels = {
            size: torch.stack([ready.pixels[size] for ready in batch]).to(self._device) for size in self._transforms
        }
        writer_memory, judged = models.look(pixels)
        began = self._spent("see", began)
        written: list[list[Text]] = [[] for _ in batch]
        if models.captioner is not None and writer_memory is not None:
            keys = torch.tensor([stable_id(ready.row.key) for ready in batch], device=self._device)
            captioner = models.captioner.adapter
            prompt = captioner.prompt if self.prompt is None else self.prompt
            written = write(captioner.need("caption"), writer_memory, keys, self.decode, prompt=prompt)
            began = self._spent("write", began)
        for ready, own in zip(batch, written, strict=True):
            ready.row.texts = [Text(text, "web") for text in ready.texts] + own
        texts = [[text.text for text in ready.row.texts] for ready in batch]
        if models.filter is not None and judged is not None:
            judge, cleaned = models.filter.adapter.need("match"), [models.filter.clean(own) for own in texts]
            scores = score(judge, *judged, cleaned, max_length=self.max_length)
            for ready, own_scores in zip(batch, scores, strict=True):
                for text, (itm, itc) in zip(ready.row.texts, own_scores, strict=True):
                    text.itm, text.itc = itm, itc
            began = self._spent("score", began)
        if self.ranker is not None:
            similarity = self.ranker([ready.image for ready in batch if ready.image is not None], texts)
            for text, value in zip(chain(*(r.row.texts for r in batch)), chain(*similarity), strict=True):
                text.ranker = value
            self._spent("rank", began)


def _one_thread() -> None:
    # One image is too little work to share among cores. The setting is each thread's own once the thread has
    # requested it, but also what later threads start from: `_ready` puts it back.
    torch.get_num_threads()
    torch.set_num_threads(1)


def _result(waiting: _Ready | Future[_Ready]) -> _Ready:
    return waiting.result() if isinstance(waiting, Future) else waiting


def _broken(broken: BrokenSample, index: int, key: str) -> _Ready:
    return _Ready(Row(key=key, index=index, status=broken.cause, detail=broken.detail))
