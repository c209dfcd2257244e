"""Making one batch: read the samples, decode, transform, choose and clean a text; and what becomes of broken ones.

This is the part of the loader that runs in worker processes. A batch depends on the request alone: every random
choice for a sample comes from a generator made of (seed, epoch, position), or of (seed, key) with `draw_by_key`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from openblip.data.clean import CleanText, cleaned
from openblip.data.images import decode_images
from openblip.data.sample import Batch, BrokenSample, Sample, collate, name_of_image, stable_id
from openblip.data.sources.base import Source

__all__ = ["BatchMaker", "Reply", "Request", "TextMode", "Transform"]

Transform = Callable[[Image.Image, np.random.Generator], Tensor]
TextMode = Literal["random", "first", "all", "any", "none"]

_AUGMENT = 3  # keeps this random stream apart from those of `order`


@dataclass(frozen=True, slots=True)
class Request:
    """One batch to make: K positions of an epoch."""

    epoch: int
    positions: np.ndarray
    sources: np.ndarray | None
    indices: np.ndarray


@dataclass(slots=True)
class Reply:
    """What a worker sends back: the batch and the samples that were broken, or why there is no batch.

    There is neither where every sample of a request was left out.
    """

    batch: Batch | None
    skipped: list[tuple[BrokenSample, str]] = field(default_factory=list)
    failure: str = ""

    def pin_memory(self) -> Reply:
        if self.batch is not None:
            self.batch = self.batch.pin_memory()
        return self


class BatchMaker(Dataset[Reply]):
    """Makes batches from requests; lives in the worker processes."""

    def __init__(
        self,
        sources: Sequence[Source],
        transform: Transform,
        *,
        seed: int,
        text_mode: TextMode,
        clean: CleanText,
        max_words: int | None,
        max_pixels: int,
        max_substitutes: int,
        leave_out: bool,
        draw_by_key: bool,
    ) -> None:
        self._sources, self._transform, self._seed = list(sources), transform, seed
        self._text_mode, self._clean, self._max_words = text_mode, clean, max_words
        self._max_pixels, self._max_substitutes = max_pixels, max_substitutes
        self._leave_out, self._draw_by_key = leave_out, draw_by_key
        self._min_side = getattr(transform, "min_side", None)

    def __getitem__(self, request: Request) -> Reply:
        reply = Reply(None)
        rows: list[tuple[Sample, Tensor, tuple[str, ...]]] = []
        for place, position in enumerate(request.positions):
            source = 0 if request.sources is None else int(request.sources[place])
            rng = np.random.default_rng([self._seed, _AUGMENT, request.epoch, int(position)])
            row = self._make(source, int(request.indices[place]), rng, reply)
            if row is not None:
                rows.append(row)
            elif reply.failure:
                return reply
        if rows:
            reply.batch = collate(rows)
        return reply

    def _make(
        self, number: int, index: int, rng: np.random.Generator, reply: Reply
    ) -> tuple[Sample, Tensor, tuple[str, ...]] | None:
        """Return the sample, or the first good substitute; None and a failure where there seems to be none.

        None alone for a broken sample that is to be left out.
        """
        source = self._sources[number]
        causes: Counter[str] = Counter()
        for attempt in range(self._max_substitutes + 1):
            try:
                return self._read(source, index, rng)
            except BrokenSample as broken:
                broken.__traceback__ = broken.__cause__ = None  # frames do not travel
                broken.key = broken.key or f"{source.name}[{index}]"
                if attempt == 0:  # a substitute that fails is reported when its own turn comes
                    reply.skipped.append((broken, source.name))
                if self._leave_out:
                    return None
                causes[broken.cause] += 1
                last = broken
            index = int(rng.integers(len(source)))
        cause, count = causes.most_common(1)[0]
        reply.failure = (
            f"the data of {source.name} seem broken as a whole: {count} of {self._max_substitutes + 1} samples "
            f"tried in a row are {cause} (the last one: {last.key}: {last.detail})"
        )
        return None

    def _read(self, source: Source, index: int, rng: np.random.Generator) -> tuple[Sample, Tensor, tuple[str, ...]]:
        sample = source[index]
        if self._draw_by_key:
            rng = np.random.default_rng([self._seed, _AUGMENT, stable_id(sample.key)])
        texts = self._choose(sample, rng)
        try:
            images = decode_images(sample, min_side=self._min_side, max_pixels=self._max_pixels)
        except BrokenSample as broken:
            broken.num_texts = len(texts) if sample.frames else 0
            raise
        if len(self._sources) > 1:
            sample = replace(sample, image_id=name_of_image(sample, source.name))
        if sample.frames:  # a crop is one for all frames of a video
            seed = int(rng.integers(2**63))
            pixels = [self._transform(image, np.random.default_rng(seed)) for image in images]
        else:
            pixels = [self._transform(image, rng) for image in images]
        return sample, pixels[0] if len(pixels) == 1 else torch.stack(pixels), texts

    def _choose(self, sample: Sample, rng: np.random.Generator) -> tuple[str, ...]:
        if self._text_mode == "none":
            return ()
        texts = tuple(text for raw in sample.texts if (text := cleaned(raw, self._clean, self._max_words)))
        if not texts and self._text_mode != "any":
            raise BrokenSample("no-text", sample.key, "no caption with a word in it")
        if self._text_mode in ("all", "any"):
            return texts
        return (texts[int(rng.integers(len(texts)))] if self._text_mode == "random" else texts[0],)
