"""What `evaluate` measures and keeps, and what `report` shows of many evaluations."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.core.errors import UserError
from openblip.core.text import counted

if TYPE_CHECKING:
    from openblip.data.cards.card import Submission
    from openblip.data.measured import Measured
    from openblip.data.source_config import SourceConfig
    from openblip.metrics.results import Result
    from openblip.tasks.config import RunConfig, TaskName
    from openblip.tasks.protocols import Adapter

__all__ = [
    "ASKED",
    "default_samples",
    "measured_task",
    "named_datasets",
    "repeated_ids",
    "result_of",
    "retrieves",
    "show_results",
]

_SAMPLES = 1000
"""of data that are no published split"""
_COUNTS = ("num_left_out", "num_unanswered", "num_without_captions")
"""among the metrics of an evaluation"""
ASKED = {"answering": ("question", "answers"), "nlvr": ("statement", "labels")}
"""of tasks that measure several texts about an image or pair: what these are called, and what they may lack"""
_DOES = {
    "answering": "answers questions",
    "dialog": "answers in dialogs",
    "nlvr": "judges pairs of images",
    "captioning": "writes captions",
    "retrieval": "matches images with texts",
}
"""what a model of a task does"""
_ABILITIES = {"retrieval": "embed", "captioning": "likelihood"}
"""what a model that is measured on all that it can do with images and captions needs for each"""


def default_samples(data: Sequence[str]) -> int:
    """Samples that are used unless another number is named: of published splits all."""
    from openblip.data.cards.find import named_split
    from openblip.data.source_config import parse_spec

    published = bool(data) and all(named_split(parse_spec(spec).path) is not None for spec in data)
    return sys.maxsize if published else _SAMPLES


def named_datasets(data: Sequence[SourceConfig]) -> frozenset[str]:
    """Names of the published datasets that are all that is measured on; none where other data are among them."""
    from openblip.data.cards.find import named_split

    named = [named_split(source.path) for source in data]
    return frozenset(one[0] for one in named if one is not None) if all(named) else frozenset()


def measured_task(
    model: str, adapter: Adapter, data: Sequence[SourceConfig], submission: Submission = ""
) -> TaskName:
    """The task that a model is measured on.

    Args:
        model: as it was named.
        submission: format of the file of predictions, "" for none.

    Raises:
        UserError: a published dataset, or the file of predictions, needs a model of another task.
    """
    from openblip.data.cards.find import card_named, named_split
    from openblip.tasks.registry import task_of
    from openblip.tasks.submission import submitted_task

    task = task_of(adapter, data)
    if submission:
        wanted = submitted_task(submission)
        if wanted != task and not (wanted == "captioning" and "likelihood" in adapter.can):
            raise _unfit("--submission", wanted, model, adapter, task)
        return wanted
    for source in data:
        named = None if source.text_column or source.image_column else named_split(source.path)
        needed = task if named is None else card_named(named[0]).task
        if needed in _DOES and needed != task and not (task == "pretraining" and needed in _ABILITIES):
            raise _unfit(source.path, needed, model, adapter, task)
    return task


def retrieves(adapter: Adapter, task: TaskName) -> bool:
    """Whether texts and images are found by each other when a model is measured."""
    return task in ("retrieval", "pretraining") and "match" in adapter.can


def _unfit(what: str, wanted: str, model: str, adapter: Adapter, task: str) -> UserError:
    able = [_DOES[name] for name, ability in _ABILITIES.items() if ability in adapter.can]
    does = _DOES.get(task) or " and ".join(able) or "gives features"
    return UserError(f"{what} needs a model that {_DOES[wanted]}; {model} is one that {does}")


def result_of(
    model: str,
    adapter: Adapter,
    config: RunConfig,
    metrics: dict[str, float],
    measured: Measured,
    candidates: int,
    *,
    dtype: str = "float32",
    repeated: Sequence[str] = (),
) -> Result:
    """The evaluation as it is written.

    Args:
        candidates: number of answers that were ranked.
        dtype: that was computed in.
        repeated: ids that the data have more than once.
    """
    from openblip.core.config import to_dict
    from openblip.core.fingerprint import fingerprint
    from openblip.core.runtime import versions
    from openblip.data.cards.find import named_split
    from openblip.metrics.results import Figure, Result

    named = [named_split(source.path) for source in config.validation]
    one = named[0] if len(named) == 1 else None
    settings: dict[str, Any] = {"prompt": config.prompt, "rerank_k": config.rerank_k, "candidates": candidates}
    settings |= {"decode": to_dict(config.decode), "max_length": config.max_length, "dtype": dtype}
    if retrieves(adapter, config.task):
        settings["max_words"] = config.max_words
    if config.task == "answering" and candidates:
        settings["keep"] = config.answering.keep
        settings |= {"label_smoothing": config.answering.label_smoothing} if adapter.family == "blip" else {}
    if config.task == "answering":
        settings["clean"] = config.clean
    partial = _partial(config, metrics, measured, one)
    if repeated and not partial:
        partial = f"{counted(len(repeated), 'id')} more than once in the data"
    return Result(
        task=_measured_task(config.task, metrics),
        dataset=one[0] if one else ", ".join(source.name or source.path for source in config.validation),
        split=one[1] if one else "",
        model=model,
        family=adapter.family,
        weights=fingerprint(adapter.model.named_parameters()),
        settings=settings,
        samples=measured.num_images,
        questions=measured.num_texts if config.task in ASKED else 0,
        left_out=tuple(dict(one) for one in measured.left_out),
        limit=None if config.validation_samples == sys.maxsize else config.validation_samples,
        official=not partial,
        partial=partial,
        metrics={name: Figure(value=float(value)) for name, value in metrics.items() if name not in _COUNTS},
        versions=versions(),
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def repeated_ids(records: Sequence[Mapping[str, object]]) -> list[str]:
    """Ids of questions or statements that several records have: a server counts each once."""
    found = (record.get("question_id", record.get("identifier")) for record in records)
    ids = Counter(str(own) for own in found if own is not None)
    return [name for name, count in ids.items() if count > 1]


def _measured_task(task: str, metrics: dict[str, float]) -> str:
    """Of a model that does several things with images and captions, what was measured."""
    known = {"captioning": "CIDEr", "retrieval": "t2i_recall@1"}
    found = [name for name, metric in known.items() if metric in metrics]
    return " and ".join(found) or task if task == "pretraining" else task


def _partial(
    config: RunConfig, metrics: dict[str, float], measured: Measured, named: tuple[str, str] | None
) -> str:
    """Why these are not the figures of a whole published split; "" where they are."""
    from openblip.metrics.results import NO_SPLIT
    from openblip.tasks.config import as_sources
    from openblip.tasks.registry import TASKS

    if named is None:
        return NO_SPLIT
    if config.validation != as_sources([":".join(named)]):
        return "read with settings of its own"
    used, limit = measured.num_images, config.validation_samples
    total = sum(len(TASKS[config.task].open(source)) for source in config.validation) if limit != sys.maxsize else 0
    if limit < total:
        return f"the first {limit:,} of {total:,} samples"
    if measured.left_out and config.task in ASKED:  # a row is one question of an image that may have others
        return f"{len(measured.left_out):,} of the rows and images could not be used"
    if measured.left_out:
        return f"{len(measured.left_out)} of {used + len(measured.left_out):,} samples could not be used"
    lacking = {"num_unanswered": "answers", "num_without_captions": "captions"}
    return next((f"no {what} in the data" for name, what in lacking.items() if metrics.get(name)), "")


def show_results(folder: Path, target: Path) -> None:
    """Print the tables of a folder of results and write them as a page; say what was skipped.

    Raises:
        UserError: there are no results, or `target` is no place for a file.
    """
    from rich.console import Console

    from openblip.metrics.results import read_results
    from openblip.report import print_table, write_report
    from openblip.report.results import results_report, results_tables

    found, console = read_results(folder), Console(highlight=False)
    for table in results_tables(found.results):
        print_table(table)
        console.print(f"{table.note}\n", markup=False)
    for name, reason in found.skipped.items():
        print(f"openblip: skipped {folder / name}: {reason}", file=sys.stderr)
    if found.skipped:
        skipped = counted(len(found.skipped), "file")
        print(f"openblip: {skipped} skipped, {len(found.results)} read", file=sys.stderr)
    write_report(target, results_report(found, f"Results in {folder}"))
