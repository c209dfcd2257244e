"""BLIP against BLIP-2 on the same images: what each trains, what a step costs, what comes of it.

    openblip experiments compare               # writes compare-results.json and compare-report.html

Both begin from the same vision tower: BLIP trains it on, with a text transformer from scratch, on ITC, ITM and LM;
BLIP-2 leaves it frozen and trains a Q-Former over it, in stage 1 and before a frozen language model in stage 2.
BLIP takes as many steps as both stages together. The models of `experiments.blip2` in the same folder are taken,
and made where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.config import keep_settings
from openblip.core.files import read_jsonl
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.world.dataset import scene_from_meta
from openblip.experiments.blip2 import Blip2Experiment, Seed, folder_name
from openblip.experiments.cost import step_cost
from openblip.experiments.judges.blip import measure_blip
from openblip.experiments.judges.zero_shot import CHOICES, accuracy, ask_about
from openblip.experiments.results import Metrics, Tables, kept, result_of
from openblip.experiments.stages import trained
from openblip.models.blip import Blip
from openblip.tasks.config import RunConfig
from openblip.tasks.load import load
from openblip.tasks.predictor import Predictor
from openblip.tasks.protocols import Adapter
from openblip.tasks.training import run_training

__all__ = ["MODELS", "compare_models"]

MODELS = ("BLIP", "BLIP-2, stage 1", "BLIP-2, stage 2, decoder", "BLIP-2, stage 2, encoder-decoder")
_STAGE2 = {"BLIP-2, stage 2, decoder": "whole", "BLIP-2, stage 2, encoder-decoder": "encoder-decoder"}


def compare_models(
    out: Path | str, config: Blip2Experiment, *, seeds: int = 3, on_stage: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Run what is not done yet.

    Returns:
        as `run_blip2_experiment`, with the tables "cost" (measured once) and "models", and for each model in
        "curves" its steps and the share of true captions at each.

    Raises:
        UserError: the folder holds an experiment with other settings.
    """
    out = Path(out)
    keep_settings(out / "experiment.json", config, "an experiment")
    tables: list[Tables] = []
    curves = []
    for number in range(seeds):
        seed = Seed(out, config, number, on_stage or (lambda _: None))
        models = {"BLIP": _measured_blip(seed), "BLIP-2, stage 1": seed.measured_first("whole")}
        models |= {name: seed.measured_second(variant) for name, variant in _STAGE2.items()}
        tables.append({"models": models})
        curves.append({"BLIP": _curve(seed), **{name: seed.curve(variant) for name, variant in _STAGE2.items()}})
    tables[0]["cost"] = _costs(Seed(out, config, 0, on_stage or (lambda _: None)))
    return result_of(config, tables, curves=curves)


# BLIP ----------------------------------------------------------------------------------------------------


def _blip_run(seed: Seed) -> RunConfig:
    """BLIP from the tower that BLIP-2 has frozen, and newly initialized text; for as many steps as both stages."""
    start = seed.out / "blip" / "start"
    if not start.exists():
        stored = open_model(seed.tower.removeprefix("openblip:"))
        new = Blip(replace(stored.blip.config, encoder=True, decoder=True))
        new.vision.load_state_dict(stored.blip.vision.state_dict())
        save_model(start, StoredModel(new, stored.tokenizer))
    steps = seed.config.stage1_steps + seed.config.stage2_steps
    run = replace(seed.blip(seed.world("train"), steps, seed=seed.number), model=str(start))
    return replace(run, train=replace(run.train, evaluate_every_steps=max(1, steps // 8)))


def _measured_blip(seed: Seed) -> Metrics:
    def quick(adapter: Adapter) -> Metrics:
        return kept(measure_blip(adapter, seed.world("val"), min(100, seed.config.test_images)))

    def train(run: Path) -> None:
        config = _blip_run(seed)
        seed.tell("BLIP from the same tower")
        run_training(config, run, resume=True, title="BLIP", evaluator=quick, show=False)

    def measure() -> Metrics:
        model = trained(seed.out / "blip" / "run", train)
        seed.tell("BLIP: measured")
        predictor = load(model, device="cpu", dtype="float32")
        count = seed.config.test_images
        found = kept(measure_blip(predictor.adapter, seed.world("test"), count))
        new = measure_blip(predictor.adapter, seed.world("novel"), count)
        return found | {
            "novel_truth": new["truth"],
            "answers_all": _chosen_answers(predictor, seed.world("test"), novel=False),
            "novel_answers_all": _chosen_answers(predictor, seed.world("novel"), novel=True),
        }

    return seed.once("blip", measure)


def _chosen_answers(predictor: Predictor, source: SourceConfig, *, novel: bool) -> float:
    """Share of right answers, of the usual ones that which BLIP finds likeliest after the question as a caption.

    It has no other way to be asked before it is fine-tuned, and is told what may be answered; BLIP-2 is not.
    """
    opened = open_source(source)
    samples = [opened[index] for index in range(len(opened))]
    asked = ask_about([scene_from_meta(sample.meta) for sample in samples], novel=novel)
    texts: list[list[str]] = [[] for _ in samples]
    for one in asked:
        texts[one.row] += [f"{one.question.text} {choice}" for choice in CHOICES[one.question.kind]]
    scores = [iter(row) for row in predictor.log_likelihood([sample.image for sample in samples], texts)]
    given = []
    for one in asked:
        choices = CHOICES[one.question.kind]
        likelihoods = [next(scores[one.row]).log_prob for _ in choices]
        given.append(choices[max(range(len(choices)), key=likelihoods.__getitem__)])
    return accuracy(asked, given)["all"]


def _curve(seed: Seed) -> dict[str, list[float]]:
    records = read_jsonl(seed.out / "blip" / "run" / "metrics.jsonl")
    rows = [record for record in records if record["split"] == "eval"]
    return {key: [float(row[key]) for row in rows] for key in ("step", "truth")}


# What a step costs ---------------------------------------------------------------------------------------


def _costs(seed: Seed) -> dict[str, Metrics]:
    """Cost of a step of each model from images, and with "cached_" before it from cached features."""
    runs: dict[str, Any] = {"BLIP": _blip_run(seed), "BLIP-2, stage 1": seed.first_config("whole")}
    runs |= {name: seed.second_config(variant) for name, variant in _STAGE2.items()}

    def measure(name: str) -> Metrics:
        seed.tell(f"cost of a step, {name}")
        run, scratch = runs[name], seed.out / "cost"
        cost = step_cost(run, scratch)
        if not run.features:
            return cost
        cached = {f"cached_{key}": cost[key] for key in ("seconds", "gflops", "peak_mb")}
        return step_cost(replace(run, features=()), scratch) | cached

    return {name: seed.once(f"cost-{folder_name(name)}", partial(measure, name)) for name in runs}
