"""The loop of the BLIP paper: a model learns from noisy pairs, cleans them, and a new one learns from the result.

    run_bootstrap(config, "runs/bootstrap")

    first       pre-training on the noisy and the human pairs
    captioner   from there, LM on the human pairs
    filter      from there, ITC and ITM on the human pairs
    clean       CapFilt over the noisy pairs
    second      a new model, pre-trained on what is left and the human pairs, as long as the first

Each stage is done once: the same call resumes where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openblip.bootstrap.job import NUCLEUS, CapFiltConfig, Output
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.run import read_totals, run_capfilt
from openblip.checkpoints.store import open_model
from openblip.core.config import keep_settings
from openblip.core.errors import UserError
from openblip.core.files import read_marker, write_json
from openblip.data.source_config import SourceConfig
from openblip.generation.config import DecodeConfig
from openblip.tasks.config import RunConfig
from openblip.tasks.registry import adapt
from openblip.tasks.training import Evaluator, evaluate_model, run_training

__all__ = ["STAGES", "BootstrapConfig", "clean_sources", "run_bootstrap"]

STAGES = ("first", "captioner", "filter", "clean", "second", "evaluate")


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """Everything that the loop depends on. Sources and starting models of the three runs are set by the loop."""

    web: tuple[SourceConfig, ...]
    """noisy pairs, to be cleaned"""
    human: tuple[SourceConfig, ...]
    """pairs that people have written"""
    pretrain: RunConfig
    """of the first model and of the second"""
    captioner: RunConfig
    filter: RunConfig
    decode: DecodeConfig = NUCLEUS
    policy: Policy = field(default_factory=Policy)
    batch_size: int = 32
    """images at a time in CapFilt"""

    def __post_init__(self) -> None:
        if not (self.web and self.human):
            raise UserError("the loop needs noisy pairs (--web) and human ones (--human)")


def run_bootstrap(
    config: BootstrapConfig,
    out: Path | str,
    *,
    evaluator: Evaluator | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the stages that are not done; returns what was measured.

    Args:
        out: folder of the loop: a folder for each stage, and bootstrap.json.
        evaluator: further metrics of a model, at each evaluation and at the end.
        on_stage: called with each stage that begins.

    Returns:
        {"first": metrics, "second": metrics, "clean": what CapFilt came to, "seconds": by stage}

    Raises:
        UserError: a mistake in the configuration or the data; the folder belongs to another loop.
        Interrupted: a signal came; everything is saved.
    """
    out = Path(out)
    keep_settings(out / "bootstrap.json", config, "a loop")
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "first": lambda: _train(config.pretrain, (*config.web, *config.human), out / "first", evaluator),
        "captioner": lambda: _tune(config.captioner, config, out, "captioner", evaluator),
        "filter": lambda: _tune(config.filter, config, out, "filter", evaluator),
        "clean": lambda: _clean(config, out),
        "second": lambda: _train(
            config.pretrain, (*clean_sources(config.web, out / "clean"), *config.human), out / "second", evaluator
        ),
        "evaluate": lambda: {name: _measure(config, out / name, evaluator) for name in ("first", "second")},
    }
    found: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        marker = out / "stages" / f"{name}.json"
        done = read_marker(marker, "seconds")
        if done is None:
            if on_stage is not None:
                on_stage(name)
            began = time.perf_counter()
            result = stages[name]()
            done = {"seconds": round(time.perf_counter() - began, 1), **result}
            write_json(marker, done)
        found[name] = done
    return {
        "first": found["evaluate"]["first"],
        "second": found["evaluate"]["second"],
        "clean": found["clean"],
        "seconds": {name: stage["seconds"] for name, stage in found.items()},
    }


def clean_sources(web: tuple[SourceConfig, ...], clean: Path) -> tuple[SourceConfig, ...]:
    """What CapFilt made of each of `web`, mixed and taken apart alike; those of which nothing is left stay out."""
    return tuple(
        SourceConfig(
            path=str(clean / str(n)), weight=source.weight, epoch_share=source.epoch_share, pairs=source.pairs
        )
        for n, source in enumerate(web)
        if (read_totals(clean / str(n)) or {}).get("images") != 0
    )


def _train(
    run: RunConfig, sources: tuple[SourceConfig, ...], out: Path, evaluator: Evaluator | None
) -> dict[str, Any]:
    result = run_training(replace(run, sources=sources), out, resume=True, evaluator=evaluator, title=out.name)
    return {"steps": result.steps, "images_per_second": result.images_per_second}


def _tune(
    run: RunConfig, config: BootstrapConfig, out: Path, name: str, evaluator: Evaluator | None
) -> dict[str, Any]:
    # From the stage before, so that the captioner and the filter begin alike and learn apart.
    started = replace(run, model=str(out / "first" / "model"))
    return _train(started, config.human, out / name, evaluator)


def _clean(config: BootstrapConfig, out: Path) -> dict[str, Any]:
    texts = images = samples = 0
    for number, source in enumerate(config.web):
        settings = CapFiltConfig(
            source=source,
            captioner=str(out / "captioner" / "model"),
            filter=str(out / "filter" / "model"),
            decode=config.decode,
            batch_size=config.batch_size,
            device=config.filter.train.device,
            max_length=config.filter.max_length,
        )
        totals = run_capfilt(settings, out / "clean" / str(number), Output(policy=config.policy))
        texts, images = texts + totals.kept_texts, images + totals.images
        samples += totals.samples
    if not images:
        raise UserError(
            f"the filter drops every text of the {samples} noisy samples; train it longer or lower the threshold"
        )
    return {"samples": samples, "images": images, "texts": texts}


def _measure(config: BootstrapConfig, run: Path, evaluator: Evaluator | None) -> dict[str, float]:
    adapter = adapt(open_model(run / "model"))
    metrics: dict[str, float] = {}
    if config.pretrain.validation:
        metrics |= evaluate_model(replace(config.pretrain, sources=config.human), adapter)[0]
    return metrics | (evaluator(adapter) if evaluator is not None else {})
