"""NLVR: a small BLIP learns to judge sentences that people wrote about two images, measured on other images.

    openblip experiments nlvr

Each seed is three training runs, one from the other: `small-pretrain` on captions and `small-nlvr` on statements
that are read off the pixels of the training images (`nlvr_data`), and `small-nlvr` on the training sentences. `dev`
is not trained on; `test` is measured with the weights at the end. A finished stage is not run again, one that was
stopped resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from openblip.checkpoints.store import open_model
from openblip.core.config import keep_settings, to_dict
from openblip.core.text import read_lines
from openblip.data.source_config import SourceConfig
from openblip.data.sources.statements import open_statements
from openblip.experiments.real.nlvr_data import write_data
from openblip.experiments.results import cell, described, spread
from openblip.experiments.stages import once
from openblip.metrics.nlvr import judgement_scores
from openblip.recipes.small import small_nlvr, small_pretrain
from openblip.tasks.config import RunConfig
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.nlvr import evaluate_statements
from openblip.tasks.registry import adapt
from openblip.tasks.training import run_training

__all__ = [
    "QUICK",
    "SETTINGS",
    "STAGES",
    "Settings",
    "Stage",
    "measure",
    "orders_averaged",
    "run",
    "run_config",
    "run_seed",
    "table",
]

STAGES = ("captions", "statements", "sentences")
_FILES = {"captions": "captions", "statements": "statements", "sentences": "train"}
"""what each is trained on"""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run."""

    steps: int
    batch_size: int
    learning_rate: float = 4e-3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the experiment depends on but the data and the seed."""

    examples: int = 0
    """rows that are read of each file of the data, at most; 0 reads them all"""
    size: str = "nano"
    captions: Stage = Stage(steps=700, batch_size=48)
    statements: Stage = Stage(steps=12_000, batch_size=24)
    sentences: Stage = Stage(steps=320, batch_size=64, learning_rate=1.5e-3)


SETTINGS = {"nlvr": Settings()}
_FEW = Stage(steps=4, batch_size=4)
QUICK = Settings(examples=12, captions=_FEW, statements=_FEW, sentences=_FEW)
"""to see that everything runs, on a handful of images"""


def _source(out: Path, file: str) -> SourceConfig:
    return SourceConfig(path=str(out / "data" / f"{file}.jsonl"), name=file)


def run_config(stage: str, out: Path, seed: int, settings: Settings) -> RunConfig:
    """One stage of a seed as a training run: the recipe for small models, and the settings."""
    chosen: Stage = getattr(settings, stage)
    number = STAGES.index(stage)
    start = str(out / f"seed-{seed}" / STAGES[number - 1] / "model") if number else settings.size
    recipe_of = small_nlvr if number else small_pretrain
    recipe = recipe_of((f"{_FILES[stage]}.jsonl",), model=start, steps=chosen.steps)
    train = replace(
        recipe.train,
        learning_rate=chosen.learning_rate,
        warmup_steps=min(recipe.train.warmup_steps, chosen.steps // 5),
        evaluate_every_steps=0,
        seed=seed,
        trackers=(),
    )
    sources = (_source(out, _FILES[stage]),)
    return replace(recipe, sources=sources, batch_size=chosen.batch_size, train=train)


def run_seed(out: Path, seed: int, settings: Settings, *, show: bool = True) -> dict[str, Any]:
    """Train and measure one seed in the folder `out`, where the data are; what was finished there is taken up.

    Returns:
        "stages": "steps" and "seconds" of each; "test": metrics.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    folder = out / f"seed-{seed}"

    def train(stage: str) -> dict[str, Any]:
        config = run_config(stage, out, seed, settings)
        trained = run_training(config, folder / stage, resume=True, title=f"nlvr {stage}, seed {seed}", show=show)
        return {"steps": trained.steps, "seconds": round(trained.seconds, 1)}

    def finished(stage: str) -> dict[str, Any]:
        found: dict[str, Any] = once(folder / f"{stage}.json", lambda: train(stage))
        return found

    stages = {stage: finished(stage) for stage in STAGES}
    test = once(folder / "measured.json", lambda: measure(folder / STAGES[-1] / "model", out))
    return {"stages": stages, "test": test}


def measure(model: Path, out: Path) -> dict[str, float]:
    """Accuracy, its standard error and consistency on `test`, and with the images of another example.

    Each also with "orders averaged": an example is judged by the mean probability of its six orders of boxes, which
    any one of its rows could be shown in.
    """
    began = time.perf_counter()
    adapter = adapt(open_model(model))
    metrics: dict[str, float] = {}
    for file, suffix in (("test", ""), ("control", ", another image")):
        source = open_statements(_source(out, file))
        batches = evaluation_batches([source], adapter.image_size, samples=len(source), clean="none", num_images=2)
        found, records = evaluate_statements(adapter.need("judge"), batches)
        metrics["sentences"] = float(len(records))
        metrics |= {f"{name}{suffix}": value for name, value in found.items()}
        averaged = orders_averaged(records)
        metrics |= {f"{name}, orders averaged{suffix}": value for name, value in averaged.items()}
        metrics[f"judged true{suffix}"] = sum(bool(record["prediction"]) for record in records) / len(records)
    return {**metrics, "measuring_seconds": round(time.perf_counter() - began, 1)}


def orders_averaged(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """`judgement_scores` where the rows of a group ("group") share the mean of their probabilities ("probability").

    The boxes of an example have no order that its sentence speaks of, so its rows are one question.
    """
    groups = [record["group"] for record in records]
    given: dict[Any, list[float]] = {}
    for group, record in zip(groups, records, strict=True):
        given.setdefault(group, []).append(record["probability"])
    predictions = [fmean(given[group]) >= 0.5 for group in groups]
    return judgement_scores(predictions, [record["label"] for record in records], groups)


def _guessing(out: Path) -> dict[str, float]:
    """Accuracy on `test` of who always says "true"."""
    labels = [json.loads(line)["label"] for line in read_lines(out / "data" / "test.jsonl")]
    return {"always true": sum(str(label).lower() == "true" for label in labels) / len(labels)}


def run(
    name: str, data: Path, out: Path, seeds: int, settings: Settings, *, command: str = "", show: bool = True
) -> dict[str, Any]:
    """Run what is not finished of every seed in `out`, and sum up.

    Returns:
        "command", "settings", "runs" (the configuration of each stage), "guessing", "machine", "versions"; "test":
        each metric as `spread` gives it; "stages": "steps" and "seconds" of training.
    """
    out.mkdir(parents=True, exist_ok=True)
    keep_settings(out / "settings.json", settings, "a run")
    write_data(data, out / "data", examples=settings.examples)
    found = [run_seed(out, seed, settings, show=show) for seed in range(seeds)]
    names = [name for name in found[0]["test"] if name != "measuring_seconds"]
    return {
        **described(name, command, seeds, settings),
        # The folder is a placeholder: where the data lay says nothing.
        "runs": {stage: to_dict(run_config(stage, Path("OUT"), 0, settings)) for stage in STAGES},
        "guessing": _guessing(out),
        "test": {name: spread([result["test"][name] for result in found]) for name in names},
        "stages": {
            stage: {what: [result["stages"][stage][what] for result in found] for what in ("steps", "seconds")}
            for stage in STAGES
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [f"{result['name']}, {result['seeds']} seeds: mean, standard deviation, each seed"]
    for name, found in result["test"].items():
        lines.append(f"{name:46}{cell(found):>20}  " + "  ".join(f"{value:.4f}" for value in found["seeds"]))
    lines += [f"{name:46}{value:>20.4f}" for name, value in result["guessing"].items()]
    lines += [
        f"{'seconds of training, ' + stage:46}" + "  ".join(str(value) for value in found["seconds"])
        for stage, found in result["stages"].items()
    ]
    return "\n".join(lines)
