"""The demo's BLIP: a world to learn from, pre-training, a captioner and a matcher, and what they have learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from openblip.checkpoints.store import open_model
from openblip.core.runtime import usable_cores
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.world.dataset import WorldConfig, scene_from_meta, write_world
from openblip.data.world.truth import retrieval_ceiling
from openblip.experiments.demo.config import IMAGES_IN_A_TAR, SPLITS, DemoPlan
from openblip.experiments.judges.blip import measure_blip, written_truth
from openblip.experiments.presets import scene_blip
from openblip.generation.config import DecodeConfig
from openblip.tasks.config import RunConfig
from openblip.tasks.protocols import Adapter
from openblip.tasks.registry import adapt
from openblip.tasks.training import run_training

__all__ = [
    "CURVE_IMAGES",
    "MOST_PROBABLE",
    "make_world",
    "measure",
    "pretrain",
    "run_config",
    "tune_captioner",
    "tune_matcher",
    "world_source",
]


def make_world(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Draw the images: noisy web pairs as tars, true captions as a captions file, two splits to measure on."""
    console = Console()
    wanted = {
        "web": WorldConfig(split="train", num_samples=plan.web_images, text="web", seed=plan.seed + 1),
        "human": WorldConfig(split="train", num_samples=plan.human_images, seed=plan.seed + 2),
        "simple": WorldConfig(split="train", num_samples=plan.simple_images, seed=plan.seed + 3, max_objects=1),
        "val": WorldConfig(split="val", num_samples=plan.test_images, seed=plan.seed),
        **{s: WorldConfig(split=s, num_samples=plan.test_images, seed=plan.seed) for s in SPLITS},  # type: ignore[arg-type]
    }
    for name, world in wanted.items():
        target = out / "world" / name
        if target.exists():
            continue  # drawn before the demo was stopped
        console.print(f"  drawing {world.num_samples} images of the {world.split} split ({name})")
        write_world(target, world, samples_per_tar=IMAGES_IN_A_TAR, num_processes=usable_cores())
    return {name: world.num_samples for name, world in wanted.items()}


def world_source(out: Path, name: str, **settings: Any) -> SourceConfig:
    """Images that `make_world` drew, with their true captions and scenes."""
    return SourceConfig(path=str(out / "world" / name), text_column="captions", meta_columns=("scene",), **settings)


def run_config(
    out: Path, plan: DemoPlan, seconds: float | None = None, *, steps: int | None = None, **train: Any
) -> RunConfig:
    """The demo's pre-training, which its other trainings are variations of.

    Args:
        seconds: that training is to take; None trains exactly `steps`.
        steps: left out, those of pre-training.
        train: other fields of `TrainConfig`.
    """
    steps = plan.pretrain_steps if steps is None else steps
    run = scene_blip(
        # In a caption of one object nothing else can be meant: shapes are learned sooner (docs/training.md).
        (
            world_source(out, "web", weight=1.0),
            world_source(out, "human", weight=3.0),
            world_source(out, "simple", weight=2.0),
        ),
        size=plan.model,
        steps=steps,
        batch_size=plan.batch_size,
        seconds=seconds,
        **{
            "learning_rate": plan.learning_rate,
            "seed": plan.seed,
            "evaluate_every_steps": max(10, steps // 3),
            **train,
        },
    )
    # On two cores a process that decodes makes the threads of training wait for each other (an eighth slower).
    return replace(run, num_workers=0 if usable_cores() <= 2 else 1)


def pretrain(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Pre-train with ITC, ITM and LM on the noisy web pairs and the human pairs together."""
    return _train(out, run_config(out, plan, seconds), "pretrain", "pre-training")


def tune_captioner(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Fine-tune a captioner (LM alone) on the human pairs."""
    return _tune(out, plan, seconds, "captioner", plan.captioner_steps)


def tune_matcher(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Fine-tune a matcher (ITC and ITM) on the human pairs: for retrieval, and to filter texts."""
    return _tune(out, plan, seconds, "matcher", plan.matcher_steps)


def _tune(
    out: Path, plan: DemoPlan, seconds: float | None, name: Literal["captioner", "matcher"], steps: int
) -> dict[str, Any]:
    run = replace(
        run_config(out, plan, seconds, steps=steps),
        task="captioning" if name == "captioner" else "retrieval",
        sources=(world_source(out, "human"),),
        model=str(out / "pretrain" / "model"),
    )
    return _train(out, run, name, f"fine-tuning the {name}")


def _train(out: Path, run: RunConfig, folder: str, title: str) -> dict[str, Any]:
    result = run_training(
        run,
        out / folder,
        resume=True,
        evaluator=lambda adapter: quick_measure(adapter, out),
        title=title,
    )
    return {"steps": result.steps, "seconds": result.seconds, "images_per_second": result.images_per_second}


CURVE_IMAGES = 100
"""of the val split, where it has so many, on which a training is measured while it runs"""
MOST_PROBABLE = DecodeConfig(max_new_tokens=36, num_beams=5, length_penalty=0.0)
"""the captioner's way to write: beam search for the most probable caption as a whole, not by the mean over its
tokens, so that a doubtful fact is rather left out"""


def quick_measure(adapter: Adapter, out: Path) -> dict[str, float]:
    """Metrics for the curves, from the first images of the val split."""
    found = measure_blip(adapter, world_source(out, "val"), CURVE_IMAGES, rerank_k=10)
    kept = {"t2i_recall@1", "t2i_recall_itm@1", "i2t_recall_itm@1", "itm_accuracy"} & found.keys()
    written = {"truth", "coverage", "fact_accuracy"} & found.keys()
    return {name: found[name] for name in kept} | {f"caption_{name}": float(found[name]) for name in written}


def measure(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Measure what was learned on unseen images, known and new combinations, after each training."""
    results: dict[str, Any] = {split: {"images": plan.test_images} for split in SPLITS}
    for name in ("pretrain", "captioner", "matcher"):
        adapter = adapt(open_model(out / name / "model"))
        for split in SPLITS:
            unseen, count = world_source(out, split), plan.test_images
            results[split][name] = measure_blip(adapter, unseen, count)
            if name == "captioner":
                results[split]["captioner_beam"] = written_truth(adapter, unseen, count, MOST_PROBABLE)
    for split in SPLITS:
        source = open_source(world_source(out, split))
        samples = [source[index] for index in range(min(plan.test_images, len(source)))]
        scenes = [scene_from_meta(sample.meta) for sample in samples]
        results[split]["retrieval_ceiling@1"] = retrieval_ceiling([s.texts[0] for s in samples], scenes, k=1)
    return results
