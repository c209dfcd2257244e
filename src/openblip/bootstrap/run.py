"""CapFilt over a collection: `run_capfilt` makes the table and the training set, `decide_again` makes them anew.

    run_capfilt(CapFiltConfig(source=parse_spec("web/"), captioner="c/model", filter="f/model"), "clean")
    decide_again("clean", Output(policy=Policy(threshold=0.7)))

The same call on the same folder resumes where complete chunks end; when nothing is left to do it does nothing.
Where the source has changed, chunks that have changed are done anew, and those that are gone are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import openblip
from openblip.bootstrap.engines import (
    ENGINES,
    MakeWorker,
    default_threads,
    ready_on_ray,
    run_local,
    run_ray,
    settled_here,
)
from openblip.bootstrap.job import (
    CapFiltConfig,
    Chunk,
    Done,
    Output,
    Shard,
    Worker,
    check_policy,
    open_part,
    plan,
)
from openblip.bootstrap.locks import read_lock, run_lock
from openblip.bootstrap.models import Models, open_models
from openblip.bootstrap.pipeline import Pipeline
from openblip.bootstrap.places import Places
from openblip.bootstrap.ranker import open_ranker
from openblip.core.compute import choose_dtype
from openblip.core.config import differences, from_dict, to_dict
from openblip.core.errors import UserError, nearest
from openblip.core.files import read_marker, remove_quietly, write_json
from openblip.core.places import local_path
from openblip.core.runtime import choose_device, versions
from openblip.core.text import read_json
from openblip.data.sinks.sets import merge_parts
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import names_files_in, source_parts

__all__ = ["Engine", "Totals", "decide_again", "load_output", "load_run", "read_totals", "run_capfilt"]

_DESCRIBED = frozenset(("config", "captioner", "filter", "missing_files"))
"""what every run.json says"""
_FREE, _FREE_OF_SOURCE = ("device",), ("weight", "epoch_share")
"""settings that may differ from one call to the next"""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Who does the work."""

    name: str = "local"
    workers: int = 0
    """processes, or actors; 0 is one for each GPU, or one"""
    threads: int = 0
    """of each process; 0 shares the cores out evenly"""
    address: str = ""
    """of a Ray cluster; "" starts one on this machine"""

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UserError(f'there is no engine "{self.name}"{nearest(self.name, ENGINES)}')
        if self.workers < 0 or self.threads < 0:
            raise UserError("workers and threads must not be negative")


@dataclass
class Totals:
    """What a run has come to."""

    chunks: int = 0
    new_chunks: int = 0
    """of them, those that this call has made"""
    samples: int = 0
    quarantined: int = 0
    kept_texts: int = 0
    images: int = 0
    """in the training set"""
    smallest_batch: int = 0
    """fewest images computed at a time, where the memory of a GPU did not suffice for a batch; else 0"""

    def add(self, done: Done) -> None:
        """Count a chunk in."""
        self.chunks += 1
        self.new_chunks += done.new
        self.samples += done.samples
        self.quarantined += done.quarantined
        self.kept_texts += done.kept_texts
        self.images += done.images
        self.smallest_batch = min(filter(None, (self.smallest_batch, done.smallest_batch)), default=0)


def run_capfilt(
    config: CapFiltConfig,
    target: Path | str,
    output: Output | None = None,
    *,
    engine: Engine | None = None,
    shard: Shard | None = None,
    on_chunk: Callable[[Done, Totals], None] | None = None,
) -> Totals:
    """Write, score and decide on every sample of a collection; see docs/capfilt.md for what is left in `target`.

    Args:
        target: a new folder, or that of the same run.
        shard: a share of the chunks; when all shares are done, one call without it joins them.
        on_chunk: called with each chunk.

    Raises:
        UserError: a mistake in the settings, the source or the models; the target belongs to another run.
    """
    target, output, engine = Path(target), output or Output(), engine or Engine()
    check_policy(config, output)
    _check_target(config, target)
    open_part.cache_clear()
    settled: AbstractContextManager[tuple[CapFiltConfig, int]]
    if engine.name == "ray":
        settled = ready_on_ray(config, engine.workers, engine.address)
    else:
        settled = nullcontext(settled_here(config, engine.workers))
    with settled as (config, workers):
        return _run(config, target, output, replace(engine, workers=workers), shard, on_chunk)


def _run(
    config: CapFiltConfig,
    target: Path,
    output: Output,
    engine: Engine,
    shard: Shard | None,
    on_chunk: Callable[[Done, Totals], None] | None,
) -> Totals:
    """`run_capfilt` of settings whose devices are there."""
    models = _open_models(config)
    described = _described(config, models)
    workers = engine.workers
    threads = engine.threads or default_threads(workers)
    opened = models if engine.name == "local" and workers == 1 else None
    del models  # other processes open their own
    names: set[str] = set()

    def note(done: Done, totals: Totals) -> None:
        names.add(done.chunk)
        if on_chunk is not None:
            on_chunk(done, totals)

    make = partial(make_worker, output=output, target=target, models=opened)
    places, share = Places(target), shard is not None and shard.count > 1
    with run_lock(target, places.run_lock, share=share) as held:
        _same_described(places, described)
        _begin(places, output)
        totals = _work(make, config, plan(config, shard), engine, workers, threads, note)
        if not share:
            places.remove_others(names)
            _finish(places, output, totals, alone=held)
    return totals


def decide_again(
    run: Path | str,
    output: Output,
    *,
    target: Path | str | None = None,
    on_chunk: Callable[[Done, Totals], None] | None = None,
) -> Totals:
    """Decide on the table of an earlier run by another policy and write the training set anew, without a model.

    Args:
        run: the folder of the run.
        target: a folder for decisions and set; None, or the run's own folder, replaces those of the run.

    Raises:
        UserError: there is no run, it is not complete, or another process is at work in one of the folders.
    """
    run = Path(run)
    config, described = load_run(run)
    check_policy(config, output)
    target = run if target is None or Path(target).resolve() == run.resolve() else Path(target)
    places, source = Places(target), Places(run)
    if target != run:
        _check_target(config, target)
    open_part.cache_clear()
    with nullcontext() if target == run else read_lock(run, source.run_lock, source.read_lock):
        if read_totals(run) is None:
            raise UserError(f"{run} is not complete; let openblip capfilt finish first")
        parts = source_parts(config.source).parts
        with run_lock(target, places.run_lock, share=False, reads=target == run) as held:
            if target != run:
                _same_described(places, described)
            return _decide(run, places, config, parts, output, on_chunk, alone=held)


def _decide(
    run: Path,
    places: Places,
    config: CapFiltConfig,
    parts: Sequence[SourceConfig],
    output: Output,
    on_chunk: Callable[[Done, Totals], None] | None,
    *,
    alone: bool,
) -> Totals:
    """`decide_again` in a folder that no other process writes to."""
    target = places.root
    _begin(places, output)
    worker = Worker(config, output, target, _no_models, tables=run if target != run else None)
    totals = Totals()
    tables = sorted(Places(run).tables.glob("*.parquet"))
    if tables and int(tables[-1].stem.partition("-")[0]) >= len(parts):
        raise UserError(f"files of {config.source.path} are gone since the run; let openblip capfilt run again")
    for table in tables:
        chunk = Chunk(table.stem, parts[int(table.stem.partition("-")[0])], 0, 0)
        _tell(worker(chunk), totals, on_chunk)
    if target != run:
        places.remove_others([table.stem for table in tables])
    _finish(places, output, totals, alone=alone)
    return totals


def load_run(run: Path | str) -> tuple[CapFiltConfig, dict[str, Any]]:
    """The settings of a run, and everything that its run.json says.

    Raises:
        UserError: there is no run in the folder.
    """
    path = Places(Path(run)).run
    if not path.is_file():
        raise UserError(f"{run} is no folder of openblip capfilt: it has no {path.relative_to(Path(run))}")
    described = _read_described(path)
    return from_dict(CapFiltConfig, described["config"]), described


def _read_described(path: Path) -> dict[str, Any]:
    """What a run.json says.

    Raises:
        UserError: it is broken.
    """
    try:
        described = read_json(path)
        if not (isinstance(described, dict) and described.keys() >= _DESCRIBED):
            raise UserError(f"{path} does not say what the run depends on")
    except UserError as error:
        raise UserError(f"{error}; choose a new folder, or delete {path.parent.parent}") from error
    return described


def read_totals(run: Path | str) -> dict[str, Any] | None:
    """What a run came to; None where it is not complete, or its file is broken and so says nothing."""
    return read_marker(Places(Path(run)).totals, "output")


def load_output(run: Path | str) -> Output:
    """The policy and layout of a complete run.

    Raises:
        UserError: there is no run, or it is not complete.
    """
    places = Places(Path(run))
    load_run(run)
    totals = read_totals(places.root)
    if totals is None:
        raise UserError(f"{run} is not complete; let openblip capfilt finish first")
    output = totals["output"]
    if output is None:
        raise UserError(f"{run} was stopped while it was decided on anew; run openblip capfilt decide again")
    return from_dict(Output, output)


def make_worker(config: CapFiltConfig, *, output: Output, target: Path, models: Models | None) -> Worker:
    """A worker that opens the models when the first chunk needs them."""
    return Worker(config, output, target, partial(make_pipeline, config, models))


def make_pipeline(config: CapFiltConfig, models: Models | None = None) -> Pipeline:
    """The models on their device, with the settings of a run."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    if models is None:
        models = _open_models(replace(config, dtype=str(dtype).removeprefix("torch.")))
    return Pipeline(
        models.to(device, dtype),
        config.decode,
        batch_size=config.batch_size,
        prompt=config.prompt,
        max_length=config.max_length,
        ranker=open_ranker(config.ranker, device) if config.ranker else None,
    )


def _open_models(config: CapFiltConfig) -> Models:
    """The models of settings whose dtype is settled."""
    return open_models(
        config.captioner,
        config.filter,
        image_size=config.image_size,
        tokenizer=config.tokenizer,
        dtype=config.dtype,
    )


def _no_models() -> Pipeline:
    raise AssertionError("every chunk has its table")


def _work(
    make: MakeWorker,
    config: CapFiltConfig,
    chunks: Iterator[Chunk],
    engine: Engine,
    workers: int,
    threads: int,
    on_chunk: Callable[[Done, Totals], None],
) -> Totals:
    totals, here = Totals(), make(config)

    def left() -> Iterator[Chunk]:
        """Chunks from the first on that is not done (of later ones the processes tell); if all are, none starts."""
        for chunk in chunks:
            if (done := here.done(chunk)) is None:
                yield chunk
                yield from chunks
            else:
                _tell(done, totals, on_chunk)

    if engine.name == "ray":
        found = run_ray(make, config, left(), workers=workers, threads=threads, address=engine.address)
    else:
        found = run_local(make, config, left(), workers=workers, threads=threads)
    with closing(found):  # also where `on_chunk` raises: processes and Ray end at once
        for done in found:
            _tell(done, totals, on_chunk)
    return totals


def _tell(done: Done, totals: Totals, on_chunk: Callable[[Done, Totals], None] | None) -> None:
    totals.add(done)
    if on_chunk is not None:
        on_chunk(done, totals)


def _check_target(config: CapFiltConfig, target: Path) -> None:
    """Refuse a target that holds something else, or that the source would see."""
    if target.is_file():
        raise UserError(f"{target} is a file; the result is a folder")
    source = Path(local_path(config.source.path)).expanduser()
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} lies in {source}, which is read; choose a folder outside it")
    if names_files_in(config.source.path, target):
        raise UserError(f"{config.source.path} names files in {target}, which would be read; choose another folder")
    if target.is_dir() and any(target.iterdir()) and not Places(target).own.is_dir():
        raise UserError(f"{target} holds other files; choose a new folder")


def _described(config: CapFiltConfig, models: Models) -> dict[str, Any]:
    """What the run depends on."""
    return {
        "config": to_dict(config),
        "captioner": models.captioner.fingerprint if models.captioner else "",
        "filter": models.filter.fingerprint if models.filter else "",
        "one_vision": models.one_vision,
        "missing_files": source_parts(config.source).missing,
        "openblip": openblip.__version__,
        "versions": versions(),
    }


def _same_described(places: Places, described: dict[str, Any]) -> None:
    """Note what the run depends on, or compare it with what stands there."""
    if not places.run.exists():
        write_json(places.run, described)
        return
    before = _read_described(places.run)
    for name in ("config", "captioner", "filter"):
        changed = differences(_identity(before[name]), _identity(described[name]), where=name)
        if changed:
            raise UserError(
                f"{places.root} holds a run with other settings ({changed[0]}); choose a new folder or delete it"
            )
    if before["missing_files"] != described["missing_files"]:
        write_json(places.run, {**before, "missing_files": described["missing_files"]})


def _identity(value: Any) -> Any:
    """A run's settings without those that may differ."""
    if not isinstance(value, dict):
        return value
    kept = {name: item for name, item in value.items() if name not in _FREE}
    source = {name: item for name, item in kept["source"].items() if name not in _FREE_OF_SOURCE}
    return kept | {"source": source}


def _begin(places: Places, output: Output) -> None:
    """Take back what an earlier run says of its decisions, where others are to be made."""
    if not places.read_lock.exists():  # it may be another user's, whom the folder is shared with
        places.read_lock.touch()  # for readers who cannot make it
    before = read_totals(places.root)
    if before is None:
        return
    if before["output"] != to_dict(output):
        for page in (places.report, places.report.with_suffix(".json")):
            page.unlink(missing_ok=True)
        write_json(places.totals, {**before, "output": None})


def _finish(places: Places, output: Output, totals: Totals, *, alone: bool) -> None:
    """Join what chunks left, remove what kills left, and say that all is there.

    Args:
        alone: a lock says that no other run is at work here. Without it, what looks left by a kill may be in use.
    """
    captions = places.root / "captions.jsonl"
    if output.layout == "jsonl":
        merge_parts(places.root, places.parts)
    else:
        remove_quietly(captions)
    folders = (
        places.root,
        places.own,
        places.tables,
        places.parts,
        places.marker("").parent,
        places.root / "images",
    )
    for folder in folders if alone else ():
        for ending in ("tmp", "old"):
            for stale in folder.glob(f".*.{ending}"):
                remove_quietly(stale)
    found = {name: value for name, value in to_dict(totals).items() if name != "new_chunks"}
    write_json(places.totals, {**found, "output": to_dict(output)})
