"""A run as chunks: what it depends on, how a source is cut, and what one chunk leaves on disk.

A chunk is a range of samples of one part of the source (a tar, a parquet file, or the whole). Whoever processes it
writes, each whole or not at all and in this order: its piece of the result table, its shard of the training set,
and a marker that says it is done. Until then its rows are kept a batch at a time, and whoever takes it up again
continues after the last of them: a chunk depends on nothing but the source, the settings and the models.

The marker, and the rows of a chunk that is not done, hold the fingerprint of the samples that they were made from:
where these have changed, the chunk is done anew.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openblip.bootstrap.locks import chunk_lock
from openblip.bootstrap.pipeline import Pipeline
from openblip.bootstrap.places import Places
from openblip.bootstrap.policy import Policy, decide
from openblip.bootstrap.table import Row, plain_row, read_table, row_from, write_table
from openblip.core.config import to_dict
from openblip.core.errors import UserError
from openblip.core.files import append_jsonl, read_jsonl, read_marker, write_json
from openblip.core.text import escaped
from openblip.data.sample import BrokenSample
from openblip.data.sinks.sets import LAYOUTS, Layout, Pair, encoded_image, free_names, remove_shard, write_shard
from openblip.data.sinks.tables import read_rows
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import NoSamples, Source
from openblip.data.sources.digest import Digest
from openblip.data.sources.open import open_source, source_parts
from openblip.generation.config import DecodeConfig

__all__ = ["CapFiltConfig", "Chunk", "Done", "Output", "Shard", "Worker", "check_policy", "plan"]

_MARKED = ("output", "done")
"""what the marker of a chunk tells"""
NUCLEUS = DecodeConfig(sample=True, top_p=0.9, min_new_tokens=5, max_new_tokens=20)
"""how the paper writes synthetic captions"""


@dataclass(frozen=True, kw_only=True)
class CapFiltConfig:
    """What the result table depends on; `Output` is what is made of it."""

    source: SourceConfig
    filter: str = ""
    """the model that judges: a folder or checkpoint with ITC and ITM; none judges nothing"""
    captioner: str = ""
    """the model that writes; none writes nothing"""
    decode: DecodeConfig = NUCLEUS
    prompt: str | None = None
    """how written texts begin; None is what the captioner was trained with"""
    image_size: int | None = None
    """pixels; None is what each model was trained with"""
    tokenizer: str | None = None
    """of a model that brings none: a folder, a file or a hub name"""
    max_length: int = 40
    """tokens of a text that the filter reads"""
    ranker: str = ""
    """a CLIP-like model whose similarity is noted as well, for the policy "blip2" """
    batch_size: int = 32
    chunk_size: int = 1024
    """samples that are finished together"""
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if not (self.filter or self.captioner):
            raise UserError("name a filter, which judges texts, a captioner, which writes them, or both")
        for name in ("batch_size", "chunk_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_length < 3:
            raise UserError(f"max_length must be at least 3, not {self.max_length}")


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is made of the table: decisions and a training set. Both can be made again without a model."""

    policy: Policy = field(default_factory=Policy)
    layout: Layout | Literal["none"] = "tars"
    """of the training set; "none" writes the table alone"""


def check_policy(config: CapFiltConfig, output: Output) -> None:
    """Refuse a policy by scores that the run does not have.

    Raises:
        UserError: see above.
    """
    policy = output.policy
    if policy.needs_filter and not config.filter:
        raise UserError(
            f'without a filter no text has a score that the policy "{policy.name}" could decide by; the policy '
            '"all" keeps every text'
        )
    if policy.name == "blip2" and policy.rank_by == "ranker" and not config.ranker:
        raise UserError(
            "there are no similarities of a ranker to rank by: the run was made without --ranker, a CLIP-like model"
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """The share of a run that one machine takes: `number` of `count`, from 0."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise UserError(f"--shard {self.number}/{self.count}: shards are numbered from 0 to {self.count - 1}")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples `start` to `stop` of a part of the source."""

    name: str
    part: SourceConfig
    start: int
    stop: int
    trouble: str = ""
    """why the part cannot be opened at all"""
    input: str = ""
    """fingerprint of the samples; "" where the table is decided on again, whatever the source has become"""
    first: str = ""
    """key of the first sample, as tables write it; "" where it is not known"""
    bad: tuple[BrokenSample, ...] = ()
    """of a part that cannot be opened, since none of its samples is of use: what is wrong with each"""


@dataclass(slots=True)
class Done:
    """What became of a chunk."""

    chunk: str
    samples: int
    quarantined: int
    kept_texts: int
    images: int
    """that have a text in the training set"""
    seconds: float = 0.0
    smallest_batch: int = 0
    """images computed at a time, where the memory of the GPU did not suffice for a batch; else 0"""
    new: bool = True
    """whether anything had to be done"""

    @classmethod
    def noted(cls, marker: dict[str, Any]) -> Done:
        """What the marker of a chunk that is done tells; earlier versions called its `smallest_batch` otherwise."""
        done = dict(marker["done"])
        return cls(**{"smallest_batch": done.pop("at_once", 0), **done}, new=False)


def plan(config: CapFiltConfig, shard: Shard | None = None) -> Iterator[Chunk]:
    """Cut the source into chunks, one part after the other; a part that cannot be opened is a chunk of its own.

    Raises:
        UserError: no part can be opened.
    """
    shard = shard or Shard()
    parts = source_parts(config.source).parts
    by_part = len(parts) >= shard.count
    failures: list[tuple[int, UserError]] = []
    opened = False
    for number, part in enumerate(parts):
        if by_part and number % shard.count != shard.number:
            continue
        try:
            source = open_part(part)
        except UserError as error:
            failures.append((number, error))
            continue
        opened = True
        for place, start in enumerate(range(0, len(source), config.chunk_size)):
            if by_part or place % shard.count == shard.number:
                stop = min(start + config.chunk_size, len(source))
                mark = _fingerprint(source, range(start, stop))
                name = f"{number:05d}-{place:05d}"
                yield Chunk(name, part, start, stop, input=mark, first=_key(source, start))
    if failures and not opened:
        raise failures[0][1]
    for number, failure in failures:
        bad = tuple(failure.bad_rows) if isinstance(failure, NoSamples) else ()
        yield Chunk(f"{number:05d}-00000", parts[number], 0, 0, str(failure), str(failure), bad=bad)


def _key(source: Source, index: int) -> str:
    try:
        return escaped(source[index].key)
    except BrokenSample as broken:
        return escaped(broken.key)


def _fingerprint(source: Source, span: range) -> str:
    """Of the samples of a chunk; what could not be read when the source was opened belongs to the first."""
    bad = [] if span.start else [(broken.cause, broken.key) for broken in source.bad_rows]
    digest = Digest()
    digest.add(source.fingerprint(span), bad)
    return digest.value()


@functools.lru_cache(maxsize=2)
def open_part(part: SourceConfig) -> Source:
    """A part of the source; those read last stay open."""
    return open_source(part)


class Worker:
    """Processes chunks, one after the other.

    Args:
        make_pipeline: opens the models; called when a chunk needs them.
        tables: where the tables of an earlier run are, when they are decided on again for another target.
    """

    def __init__(
        self,
        config: CapFiltConfig,
        output: Output,
        target: Path,
        make_pipeline: Callable[[], Pipeline],
        *,
        tables: Path | None = None,
    ) -> None:
        self.config, self.output = config, output
        self.places = Places(target)
        self._earlier = Places(tables) if tables is not None else self.places
        self._make_pipeline = functools.cache(make_pipeline)

    def done(self, chunk: Chunk) -> Done | None:
        """What became of a chunk that is done; None where something is left to do."""
        before = read_marker(self.places.marker(chunk.name), *_MARKED)
        if before is None or before["output"] != to_dict(self.output) or self._changed(chunk, before):
            return None
        return Done.noted(before)

    def __call__(self, chunk: Chunk) -> Done:
        """Process a chunk, unless it is done."""
        with chunk_lock(self.places.lock(chunk.name), chunk.part.path):
            return self._process(chunk)

    def _process(self, chunk: Chunk) -> Done:
        places, began = self.places, time.perf_counter()
        wanted = to_dict(self.output)
        marker = places.marker(chunk.name)
        before = read_marker(marker, *_MARKED)
        made_from = self._made_from(chunk)
        if before is not None and self._changed(chunk, before):
            if chunk.trouble:
                raise UserError(
                    f"{chunk.part.path} was done before and cannot be opened now: {chunk.trouble}; make it "
                    "readable again, or take it away to have its samples removed from the result"
                )
            places.unfinished()
            # The samples have changed. The marker goes last: until then it says of which samples all this is.
            for stale in (places.table(chunk.name), places.begun(chunk.name), marker):
                stale.unlink(missing_ok=True)
            before = None
        if before is not None and before["output"] == wanted:
            return Done.noted(before)
        if before is not None:
            # From here on the table may hold the new decisions: the marker must not vouch for the old ones.
            write_json(marker, {**before, "output": None})
        seconds: dict[str, float] = {}
        known = self._earlier.table(chunk.name)
        # A table without a marker is left by a kill: nothing says of which samples it is.
        trusted = known.exists() and (before is not None or not chunk.input)
        rows = read_table(known) if trusted else self._compute(chunk, seconds)
        for row in rows:
            if row.status == "ok":
                decide(row.texts, self.output.policy)
        write_table(places.table(chunk.name), rows)
        for layout in LAYOUTS:
            if layout != self.output.layout:
                remove_shard(layout, places.root, places.parts, chunk.name)
            elif self._write_set(chunk, rows, layout):
                write_table(places.table(chunk.name), rows)
        done = _count(chunk, rows)
        done.seconds = round(time.perf_counter() - began, 3)
        stages = seconds
        if seconds:
            done.smallest_batch = self._lowered_batch_size()
        elif noted := before or read_marker(self._earlier.marker(chunk.name), *_MARKED):
            # Nothing was computed: what was noted when it was is kept.
            done.smallest_batch, stages = Done.noted(noted).smallest_batch, noted.get("stages", {})
        stored = {name: value for name, value in to_dict(done).items() if name != "new"}
        write_json(marker, {"output": wanted, "done": stored, "stages": stages, "input": made_from})
        places.begun(chunk.name).unlink(missing_ok=True)
        return done

    def _made_from(self, chunk: Chunk) -> str:
        """Of which samples its table is, or is going to be."""
        return chunk.input or _input_of(read_marker(self._earlier.marker(chunk.name), *_MARKED))

    def _changed(self, chunk: Chunk, before: dict[str, Any]) -> bool:
        """Whether its samples are others than those that its marker speaks of."""
        return _input_of(before) not in (self._made_from(chunk), "") or self._renamed(chunk)

    def _renamed(self, chunk: Chunk) -> bool:
        """Whether the samples of a chunk that is done are called otherwise now, as those of a renamed tar are.

        Fingerprints are made of what the part holds, not of what it is called.
        """
        table = self.places.table(chunk.name)
        if not (chunk.first and table.exists()):
            return False
        rows = read_rows(table, columns=["key", "index"])
        before = next((row["key"] for row in rows if row["index"] == chunk.start), chunk.first)
        return before != chunk.first

    def _compute(self, chunk: Chunk, seconds: dict[str, float]) -> list[Row]:
        """The rows of a chunk, by the models."""
        part = chunk.part.path
        self.places.unfinished()
        if chunk.trouble:
            bad = chunk.bad or [BrokenSample("unreadable", Path(part).name, chunk.trouble)]
            return _bad_rows(bad, part)
        source = open_part(chunk.part)
        # What could not be read when the part was opened belongs to its first chunk.
        rows = _bad_rows(source.bad_rows if chunk.start == 0 else [], part)
        pipeline = self._make_pipeline()
        pipeline.seconds.clear()
        begun = self.places.begun(chunk.name)
        begun.parent.mkdir(parents=True, exist_ok=True)
        first, *batches = read_jsonl(begun) or [{}]
        if first.get("input") != chunk.input:
            begun.unlink(missing_ok=True)
            append_jsonl(begun, {"input": chunk.input})
            batches = []
        found = pipeline.rows(
            source,
            range(chunk.start, chunk.stop),
            known=[row_from(plain) for batch in batches for plain in batch.get("rows", ())],
            on_batch=lambda rows: append_jsonl(begun, {"rows": [plain_row(row) for row in rows]}),
        )
        for row in found:
            row.part = part
        seconds.update({stage: round(spent, 3) for stage, spent in pipeline.seconds.items()})
        return rows + found

    def _lowered_batch_size(self) -> int:
        """Images computed at a time, where these are fewer than `batch_size`; else 0."""
        at_once = self._make_pipeline().at_once
        return at_once if at_once < self.config.batch_size else 0

    def _write_set(self, chunk: Chunk, rows: Sequence[Row], layout: Layout) -> bool:
        """Write the chunk's shard of the training set; whether a row had to be changed on the way."""
        places, gone = self.places, 0

        def pairs() -> Iterator[Pair]:
            nonlocal gone
            for row in rows:
                if row.status != "ok" or not row.kept:
                    continue
                try:
                    yield _pair(row, open_part(chunk.part))
                except BrokenSample as broken:
                    gone += 1
                    row.status, row.detail = broken.cause, broken.detail
                    for text in row.kept:
                        text.kept, text.reason = False, "no-image"

        write_shard(layout, places.root, places.parts, chunk.name, pairs())
        return gone > 0


def _bad_rows(bad: Iterable[BrokenSample], part: str) -> list[Row]:
    return [Row(key=b.key, index=-1, part=part, status=b.cause, detail=b.detail) for b in bad]


def _input_of(marker: dict[str, Any] | None) -> str:
    """Of which samples a chunk was made; "" where nothing says so, as earlier versions noted nothing."""
    return str((marker or {}).get("input", ""))


def _pair(row: Row, source: Source) -> Pair:
    # As tables write names, whether the row is new or comes from one: so the set is the same either way.
    key, image_id = escaped(row.key), escaped(row.image_id)
    changed = UserError(
        f'sample {row.index} of {row.part} is not "{key}" any more; the source has changed since its texts '
        "were scored: let openblip capfilt run again, which scores what has changed"
    )
    if row.index >= len(source):
        raise changed
    sample = source[row.index]
    if escaped(sample.key) != key:
        raise changed
    kept = row.kept
    own: dict[str, Any] = {
        "source_key": key,
        "origins": [text.origin for text in kept],
        "itm": [text.itm for text in kept],
        "itc": [text.itc for text in kept],
    }
    image, _ = encoded_image(sample.image)
    record = {**free_names(row.meta, own), **own}
    return Pair(f"{row.index:09d}", image, [text.text for text in kept], image_id, record)


def _count(chunk: Chunk, rows: Sequence[Row]) -> Done:
    causes = Counter(row.status for row in rows)
    good = [row for row in rows if row.status == "ok"]
    return Done(
        chunk=chunk.name,
        samples=len(rows),
        quarantined=len(rows) - causes["ok"],
        kept_texts=sum(len(row.kept) for row in good),
        images=sum(bool(row.kept) for row in good),
    )
