"""Results of evaluations as files of one schema: one JSON for each, and many read from a folder.

write_result(Path("results"), result, records)
found = read_results(Path("results"))          # found.results, found.skipped
means = joined_runs(found.results)             # of runs that differ by their seed one result
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError, first_line
from openblip.core.files import write_bytes, write_json
from openblip.core.fingerprint import Digest
from openblip.core.text import json_bytes, read_json

__all__ = [
    "KIND",
    "NO_SPLIT",
    "Figure",
    "FoundResults",
    "Result",
    "has_results",
    "joined_runs",
    "read_results",
    "write_result",
]

KIND = "openblip-evaluation-1"
"""what a file of this schema begins with"""
NO_SPLIT = "no published split"
"""why figures are not official where the data are nobody's"""
_SEED = re.compile(r"seed([-_=]?)\d+", re.IGNORECASE)
"""by which the names of models differ that are runs of one recipe"""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A metric's value."""

    value: float
    spread: float | None = None
    """standard deviation (of the sample, n - 1), where the value is a mean of several runs: see `joined_runs`"""
    runs: int = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation of one model on one dataset."""

    kind: str = KIND
    task: str
    dataset: str
    """of `openblip datasets`, or the specs of other data"""
    split: str = ""
    """"" where the data are no published split"""
    model: str
    """as it was named"""
    family: str
    weights: str
    """fingerprint of all parameters"""
    settings: dict[str, Any] = field(default_factory=dict)
    """how texts were generated, candidates re-ranked, answers ranked"""
    samples: int
    """images, or pairs of images or videos, that were used"""
    questions: int = 0
    """or statements about them, where these are what is measured"""
    left_out: tuple[dict[str, str], ...] = ()
    """those that could not be used: key, cause, detail and source"""
    limit: int | None = None
    """samples that were asked for; None is all"""
    official: bool
    """whether these are the figures of a whole published split"""
    partial: str = ""
    """why they are not"""
    metrics: dict[str, Figure]
    versions: dict[str, str] = field(default_factory=dict)
    date: str
    """ISO 8601, UTC"""

    @property
    def identity(self) -> tuple[Any, ...]:
        """What an equal evaluation shares: not figures, date or versions, nor where the model lies."""
        return (self.task, self.dataset, self.split, self.weights, to_dict(self.settings), self.limit)

    @property
    def name(self) -> str:
        """Of its file, without ending; equal evaluations have the same."""
        digest = Digest()
        digest.add(*self.identity)
        place = "-".join(part for part in (self.dataset, self.split, self.task) if part)
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', place).strip('-')[-60:]}-{self.weights[:8]}-{digest.value()[:8]}"


@dataclass(frozen=True)
class FoundResults:
    """What a folder holds."""

    results: list[Result]
    skipped: dict[str, str]
    """for each JSON file that is no result the reason"""


def write_result(folder: Path, result: Result, records: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write a result, and its predictions beside it, in place of those of an equal evaluation and of nothing else.

    Args:
        records: one for each image or question; NAME.predictions.jsonl.

    Returns:
        the file.
    """
    number, file = 1, folder / f"{result.name}.json"
    while file.exists() and not _same(file, result):
        number += 1
        file = folder / f"{result.name}-{number}.json"
    write_json(file, to_dict(result))
    if records:
        write_bytes(predictions_of(file), b"".join(json_bytes(dict(record)) + b"\n" for record in records))
    else:
        predictions_of(file).unlink(missing_ok=True)  # those of an equal evaluation before, of other figures
    return file


def predictions_of(file: Path) -> Path:
    """Where the predictions of a result stand."""
    return file.with_name(f"{file.stem}.predictions.jsonl")


def _same(file: Path, result: Result) -> bool:
    try:
        return _read(file).identity == result.identity
    except UserError:
        return False


def _read(file: Path) -> Result:
    """The result in a file.

    Raises:
        UserError: there is none; says why, without the file's name.
    """
    try:
        data = read_json(file)
    except OSError as error:
        raise UserError(error.strerror or "cannot be read") from error
    except UserError as error:
        found = first_line(error).removeprefix(f"{file} ").removeprefix("cannot be read as JSON: ")
        raise UserError(f"is no JSON ({found})") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        kind = data.get("kind") if isinstance(data, dict) else None
        other = isinstance(kind, str) and kind.startswith(KIND.rpartition("-")[0])
        raise UserError(f"is of another schema, {kind}" if other else "is no result of openblip evaluate")
    return from_dict(Result, data)


def _candidates(folder: Path) -> list[Path]:
    """JSON files, but for those that `openblip report` writes beside a page."""
    return [file for file in sorted(folder.glob("*.json")) if not file.with_suffix(".html").exists()]


def read_results(folder: Path) -> FoundResults:
    """All results of a folder, in the order of their names; other JSON files are named and skipped.

    Raises:
        UserError: there is no such folder, or no result in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder of results {folder}")
    results: list[Result] = []
    skipped: dict[str, str] = {}
    for file in _candidates(folder):
        try:
            results.append(_read(file))
        except UserError as error:
            skipped[file.name] = str(error)
    if not results:
        broken = f"; {next(iter(skipped))} {skipped[next(iter(skipped))]}" if skipped else ""
        raise UserError(f"{folder} holds no result of openblip evaluate --out{broken}")
    return FoundResults(results, skipped)


def joined_runs(results: Sequence[Result]) -> list[Result]:
    """The results, with one in place of those of several runs of one recipe: mean and standard deviation.

    Runs are those whose models are called alike but for a number after "seed" ("runs/coco-seed0/model"), of
    different weights, measured on the same data with the same settings.
    """
    groups: dict[Any, list[Result]] = {}
    for place, result in enumerate(results):
        name = _any_seed(result.model)
        single = name == result.model or any(figure.runs > 1 for figure in result.metrics.values())
        key: Any = place
        if not single:
            about = (result.samples, result.limit, result.official, result.partial, to_dict(result.settings))
            key = (name, result.task, result.dataset, result.split, result.family, repr(about))
        if not single and result.weights in {other.weights for other in groups.get(key, ())}:
            key = place  # the same model twice is no other run
        groups.setdefault(key, []).append(result)
    return [_mean(runs) if len(runs) > 1 else runs[0] for runs in groups.values()]


def _any_seed(model: str) -> str:
    return _SEED.sub(r"seed\1*", model)


def _mean(runs: Sequence[Result]) -> Result:
    """One result of several runs, of the metrics that all have."""
    metrics: dict[str, Figure] = {}
    for name in runs[0].metrics:
        values = [run.metrics[name].value for run in runs if name in run.metrics]
        if len(values) == len(runs):
            metrics[name] = Figure(value=fmean(values), spread=stdev(values), runs=len(runs))
    model = f"{_any_seed(runs[0].model)}, {len(runs)} runs"
    return replace(runs[0], model=model, weights="+".join(run.weights for run in runs), metrics=metrics)


def has_results(folder: Path) -> bool:
    """Whether a folder holds at least one result."""
    for file in _candidates(folder):
        try:
            _read(file)
        except UserError:
            continue
        return True
    return False
