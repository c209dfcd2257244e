"""Features of the frozen tower on disk: computed once for every image, read in training in place of images.

    done = cache_features([open_source("photos/")], tower, "features/")     # the same call resumes

A folder holds cache.json (the tower, its input, crops and storage), skipped.jsonl, and shards of a bounded size
(`feature_files`). Each shard says which images it is of and holds their fingerprint, so that a run that was stopped
and images that were added or replaced are one case: what no valid shard covers is computed.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.interrupt import Stopped, StopSignals
from openblip.core.sharing import is_first, own_place, together
from openblip.data.sample import BrokenSample
from openblip.data.sources.base import Source
from openblip.data.stream import Loader
from openblip.models.tower import FrozenTower
from openblip.tasks.feature_cache import FORMAT, describe_tower, read_description, refuse_others
from openblip.tasks.feature_files import (
    ShardHead,
    ShardWriter,
    Span,
    StorageError,
    Store,
    bytes_of_image,
    shard_files,
    shard_path,
)
from openblip.tasks.feature_input import Crops, CropTransform, Pending, Row, Rows

__all__ = ["SHARD_MB", "Cached", "Crops", "FeatureJob", "cache_features"]

SHARD_MB = 64.0


@dataclass(frozen=True)
class Cached:
    """What a folder holds after `cache_features`."""

    images: int
    """that have features"""
    left_out: int
    """that cannot be read and are listed in skipped.jsonl"""
    computed: int
    """images that were gone through this time"""
    size: int
    """bytes on disk"""
    error: StorageError
    """of storage"""


def cache_features(sources: Sequence[Source], tower: FrozenTower, folder: Path | str, **options: Any) -> Cached:
    """Compute what is not there yet, or has changed; the options are those of `FeatureJob`."""
    return FeatureJob(sources, tower, folder, **options).run()


class FeatureJob:
    """What there is to compute, known before it is begun.

    Args:
        store: how values are kept; None keeps them as they are computed.
        batch_size: images, or crops of images, that the tower is given at a time.
        shard_mb: MB (10**6 bytes) that a shard is not to exceed; it holds at least one batch.

    Attributes:
        total: images of all sources.
        done: images that need not be computed again.
        shape: of the features of an image, [C, N, D].

    Raises:
        UserError: the folder holds other features.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tower: FrozenTower,
        folder: Path | str,
        *,
        store: Store | None = None,
        crops: Crops | None = None,
        batch_size: int = 32,
        shard_mb: float = SHARD_MB,
        num_workers: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise UserError("batch_size must be at least 1, and num_workers not negative")
        if videos := [source.name for source in sources if source.frames]:
            raise UserError(f"features of videos are not kept on disk; train on {videos[0]} itself")
        if not 0 < shard_mb < math.inf:
            raise UserError(f"shard_mb is the size of a file in MB and cannot be {shard_mb:g}")
        self.folder, self._sources, self._tower, self._device = Path(folder), list(sources), tower, device
        self._store = store or cast(Store, str(tower.dtype).removeprefix("torch."))
        self._crops, self._num_workers = crops or Crops(), num_workers
        self._described: dict[str, Any] = {
            "format": FORMAT,
            "store": self._store,
            "crops": self._crops.describe(),
            "tower": describe_tower(tower),
        }
        self._refuse_others()
        tower.to(device)
        blank = torch.zeros(1, 3, *tower.pixels, dtype=torch.uint8, device=device)
        _, tokens, width = tower(tower.normalize(blank)).shape
        self.shape = (self._crops.count, tokens, width)
        self._batch = max(1, batch_size // self._crops.count)
        fitting = int(shard_mb * 1e6) // bytes_of_image(self.shape, self._store)
        self._each = max(1, fitting // self._batch) * self._batch
        self._starts = list(accumulate(map(len, self._sources), initial=0))
        self.total = self._starts[-1]
        self._kept, self._stale = self._sort_out()
        self._missing = list(self._gaps())
        self.done = self.total - sum(span.last - span.first for span in self._missing)

    @property
    def size(self) -> int:
        """Bytes of the features of all images."""
        return self.total * bytes_of_image(self.shape, self._store)

    def run(self, progress: Callable[[int], None] | None = None) -> Cached:
        """Compute. Images that cannot be read are left out and listed.

        Within `sharing` the ranks compute a shard each at a time; the files are those of one process.

        Args:
            progress: called with the number of images that are done, after each batch.

        Raises:
            UserError: two images have one key, none can be read, or the disk is full; finished shards are kept.
            Stopped: SIGINT or SIGTERM came; what is computed is kept.
        """
        if len(set(together(lambda: (self.total, hash(tuple(self._missing)))))) > 1:
            raise UserError(f"the processes find different images, or features in {self.folder}; give all the same")
        together(self._clean_up)
        if self._missing:
            self._compute(progress or (lambda done: None))
        (found, *_) = together(lambda: self._found() if is_first() else None)
        assert found is not None
        return found

    def _clean_up(self) -> None:
        if is_first():
            for file in (*self._stale, *self.folder.glob(".features-*.tmp")):
                file.unlink(missing_ok=True)
            write_json(self.folder / "cache.json", self._described)

    def _found(self) -> Cached:
        """What the folder holds now."""
        heads = [ShardHead.read(file) for file in shard_files(self.folder)]
        images = sum(len(head.keys) for head in heads)
        if not images:
            names = " and ".join(source.name for source in self._sources)
            listed = self.folder / "skipped.jsonl"
            raise UserError(f"no image of {names} can be read; {listed} says what is wrong with each")
        return Cached(
            images=images,
            left_out=self.total - images,
            computed=self.total - self.done,
            size=sum(head.path.stat().st_size for head in heads),
            error=reduce(StorageError.plus, (head.error for head in heads)),
        )

    def _compute(self, progress: Callable[[int], None]) -> None:
        """Compute the missing spans in turns: in each turn every rank, of those that share the work, has one."""
        seen = {key: self._source_at(head.span.first) for head in self._kept for key in head.keys}
        number, parts = own_place()
        loader = self._loader(self._missing[number::parts])
        done = self.done
        with StopSignals() as signals, closing(loader):
            rows = Rows(loader)
            for turn in range(0, len(self._missing), parts):
                spans = self._missing[turn : turn + parts]
                own = spans[number] if number < len(spans) else None
                if parts > 1:
                    self._note_keys(spans, seen)

                def work(own: Span | None = own, before: int = done) -> _Worked:
                    if own is None:
                        return _Worked(0, 0, [])
                    return self._write(own, rows, seen, signals, lambda now: progress(before + now))

                worked = together(work)
                done += sum(one.images for one in worked)
                if parts > 1:
                    progress(done)
                for span, one in zip(spans, worked, strict=False):
                    for key in one.keys:
                        seen.setdefault(key, self._source_at(span.first))
                if stop := max(one.stop for one in worked):
                    place = f"{done} of {self.total} images"
                    raise Stopped(f"stopped after {place}; their features are in {self.folder}", stop)

    def _note_keys(self, spans: Sequence[Span], seen: dict[str, int]) -> None:
        """Note the keys of spans that other ranks compute in this turn and that come before this rank's own."""
        number, _ = own_place()

        def keys() -> list[str]:
            found = []
            for place in range(*spans[number]) if number < len(spans) else ():
                of = self._source_at(place)
                with suppress(BrokenSample):
                    found.append(self._sources[of][place - self._starts[of]].key)
            return found

        for span, listed in zip(spans[:number], together(keys), strict=False):
            for key in listed:
                seen.setdefault(key, self._source_at(span.first))

    def _write(
        self, span: Span, rows: Rows, seen: dict[str, int], signals: StopSignals, progress: Callable[[int], None]
    ) -> _Worked:
        """Write the shard of a span, as far as no signal comes.

        Args:
            progress: called with the number of images of the span that are done.
        """
        inputs, end, keys = self._images_of(span), span.first, list[str]()
        with ShardWriter(shard_path(self.folder, span.first), self._store, self.shape) as shard:
            while end < span.last:
                batch = rows.take(self._batch, span.last)
                end = batch[-1].place + 1 if len(batch) == self._batch else span.last
                if new := self._first_of_each(batch, seen):
                    shard.add([row.key for row in new], self._features(new))
                    keys += [row.key for row in new]
                progress(end - span.first)
                if signals.received:
                    break
            whole = end == span.last
            shard.finish(Span(span.first, end), inputs if whole else self._images_of(Span(span.first, end)))
        return _Worked(end - span.first, signals.received, keys)

    def _features(self, rows: Sequence[Row]) -> Tensor:
        """[n, C, N, D] of n images."""
        images = torch.cat([row.images for row in rows]).to(self._device)
        return self._tower(self._tower.normalize(images)).unflatten(0, (len(rows), self._crops.count))

    def _first_of_each(self, rows: Sequence[Row], seen: dict[str, int]) -> list[Row]:
        """The rows whose keys are new."""
        new = []
        for row in rows:
            source = self._source_at(row.place)
            if row.key not in seen:
                new.append(row)
            elif seen[row.key] != source:
                raise UserError(f'two images have the key "{row.key}"; cache each source in a folder of its own')
            seen[row.key] = source
        return new

    def _loader(self, spans: Sequence[Span]) -> Loader:
        pending = [
            Pending(source, [span for span in spans if self._source_at(span.first) == number], start)
            for number, (source, start) in enumerate(zip(self._sources, self._starts, strict=False))
        ]
        return Loader(
            [source for source in pending if len(source)],
            CropTransform(self._tower.pixels, self._crops),
            self._batch,
            seed=self._crops.seed,
            shuffle=False,
            drop_last=False,
            text_mode="none",
            num_workers=self._num_workers,
            skip_log=self.folder / "skipped.jsonl",
            leave_out=True,
            draw_by_key=True,
        )

    def _refuse_others(self) -> None:
        found = read_description(self.folder)
        if found is None:
            return
        kept, asked = (
            {"store": one["store"], **{f"{name} of crops": value for name, value in one["crops"].items()}}
            for one in (found, self._described)
        )
        for name, value in asked.items():
            if kept[name] != value:
                raise UserError(
                    f"{self.folder} holds other features: its {name} is {kept[name]}, not {value}; "
                    "choose a new folder"
                )
        refuse_others(found["tower"], self._described["tower"], self.folder, "choose a new folder")

    def _sort_out(self) -> tuple[list[ShardHead], list[Path]]:
        """The shards whose images are still the same, and the files of the others."""
        kept, stale = [], []
        for file in shard_files(self.folder):
            try:
                head = ShardHead.read(file)
            except UserError:  # damaged
                stale.append(file)
                continue
            number = self._source_at(head.span.first)
            inside = number < len(self._sources) and head.span.last <= self._starts[number + 1]
            if inside and head.inputs == self._images_of(head.span) and head.is_whole():
                kept.append(head)
            else:
                stale.append(file)
        return kept, stale

    def _gaps(self) -> Iterator[Span]:
        """What no shard covers, in pieces of at most a shard that lie in one source each."""
        edges = [*((head.span.first, head.span.last) for head in self._kept), *((at, at) for at in self._starts)]
        end = 0
        for first, last in sorted(edges):
            for begin in range(end, first, self._each):
                yield Span(begin, min(first, begin + self._each))
            end = last

    def _source_at(self, place: int) -> int:
        """Which source the image at a place among all is of; an empty source has none."""
        return bisect_right(self._starts, place) - 1

    def _images_of(self, span: Span) -> str:
        """Fingerprint of images of one source; their texts do not matter to features."""
        number = self._source_at(span.first)
        start = self._starts[number]
        return self._sources[number].fingerprint(range(span.first - start, span.last - start), texts=False)


class _Worked(NamedTuple):
    """What a rank did in a turn."""

    images: int
    """that it went through"""
    stop: int
    """the signal that ended it, 0 for none"""
    keys: list[str]
    """of the images that have features now"""
