"""The demo's BLIP: a world to learn from, pre-training, a captioner and a matcher, and what they have learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from openblip.core.runtime import usable_cores
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sources.base import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.transforms import ImageTransformConfig
from openblip.data.world.dataset import WorldConfig, scene_from_meta, write_world
from openblip.data.world.scene import Scene
from openblip.data.world.truth import caption_report, retrieval_ceiling
from openblip.experiments.demo.config import PICTURES_IN_A_TAR, SPLITS, DemoPlan
from openblip.generation.types import DecodeConfig
from openblip.models.blip import Blip
from openblip.models.pixels import normalize
from openblip.objectives.pretraining import ObjectiveConfig
from openblip.recipes import SHORT_CAPTIONER, SHORT_FILTER, SHORT_RUN
from openblip.tasks.caption import write_captions
from openblip.tasks.predictor import Predictor
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.run import RunConfig, evaluation_batches, run_training
from openblip.training.config import TrainConfig, within

__all__ = [
    "MOST_PROBABLE",
    "make_world",
    "measure",
    "measure_model",
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
        "web": WorldConfig(split="train", num_samples=plan.web_pictures, text="web", seed=plan.seed + 1),
        "human": WorldConfig(split="train", num_samples=plan.human_pictures, seed=plan.seed + 2),
        "simple": WorldConfig(split="train", num_samples=plan.simple_pictures, seed=plan.seed + 3, max_objects=1),
        "val": WorldConfig(split="val", num_samples=plan.test_pictures, seed=plan.seed),
        **{s: WorldConfig(split=s, num_samples=plan.test_pictures, seed=plan.seed) for s in SPLITS},  # type: ignore[arg-type]
    }
    for name, world in wanted.items():
        target = out / "world" / name
        if target.exists():
            continue  # drawn before the demo was stopped
        console.print(f"  drawing {world.num_samples} images of the {world.split} split ({name})")
        write_world(target, world, samples_per_tar=PICTURES_IN_A_TAR, num_processes=usable_cores())
    return {name: world.num_samples for name, world in wanted.items()}


def world_source(out: Path, name: str, **settings: Any) -> SourceConfig:
    """Pictures that `make_world` drew, with their true captions and scenes."""
    return SourceConfig(path=str(out / "world" / name), text_column="captions", meta_columns=("scene",), **settings)


def run_config(out: Path, plan: DemoPlan, seconds: float | None = None) -> RunConfig:
    """The demo's pre-training, which its other trainings are variations of; it ends after `seconds`, if given."""
    return RunConfig(
        # In a caption of one object nothing else can be meant: shapes are learned sooner (docs/training.md).
        sources=(
            world_source(out, "web", weight=1.0),
            world_source(out, "human", weight=3.0),
            world_source(out, "simple", weight=2.0),
        ),
        model=plan.model,
        vocab_size=1000,
        transform=ImageTransformConfig(crop_scale=None, flip=False, ops=()),
        batch_size=plan.batch_size,
        # On two cores a process that decodes makes the threads of training wait for each other (an eighth slower).
        num_workers=0 if usable_cores() <= 2 else 1,
        max_length=40,
        max_words=40,
        objective=SHORT_RUN,
        train=within(
            TrainConfig(
                max_steps=plan.pretrain_steps,
                optimizer="muon",
                learning_rate=plan.learning_rate,
                min_learning_rate=1e-5,
                warmup_steps=min(50, plan.pretrain_steps // 5),
                warmup_learning_rate=1e-5,
                schedule="cosine",
                betas=(0.9, 0.98),
                weight_decay_on="matrices",
                clip_norm=3.0,
                seed=plan.seed,
                log_every=10,
                evaluate_every_epochs=0,
                evaluate_every_steps=max(10, plan.pretrain_steps // 3),
                checkpoint_every=200,
                keep_checkpoints=1,
            ),
            seconds,
        ),
    )


def pretrain(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Pre-train with ITC, ITM and LM on the noisy web pairs and the human pairs together."""
    return _train(out, run_config(out, plan, seconds), "pretrain", "pre-training")


def tune_captioner(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Fine-tune a captioner (LM alone) on the human pairs."""
    return _tune(out, plan, seconds, "captioner", SHORT_CAPTIONER, plan.captioner_steps)


def tune_matcher(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Fine-tune a matcher (ITC and ITM) on the human pairs: for retrieval, and to filter texts."""
    return _tune(out, plan, seconds, "matcher", SHORT_FILTER, plan.matcher_steps)


def _tune(
    out: Path, plan: DemoPlan, seconds: float | None, name: Literal["captioner", "matcher"],
    objective: ObjectiveConfig, steps: int,
) -> dict[str, Any]:  # fmt: skip
    base = run_config(out, plan, seconds)
    run = replace(
        base,
        sources=(world_source(out, "human"),),
        model=str(out / "pretrain" / "model"),
        parts=name,
        objective=objective,
        train=replace(
            base.train, max_steps=steps, warmup_steps=min(50, steps // 5), evaluate_every_steps=max(10, steps // 3)
        ),
    )
    return _train(out, run, name, f"fine-tuning the {name}")


def _train(out: Path, run: RunConfig, folder: str, title: str) -> dict[str, Any]:
    result = run_training(
        run,
        out / folder,
        resume=True,
        evaluator=lambda model, tokenizer: quick_measure(model, tokenizer, out),
        title=title,
    )
    return {"steps": result.steps, "seconds": result.seconds, "images_per_second": result.images_per_second}


GREEDY = DecodeConfig(max_new_tokens=36)
MOST_PROBABLE = DecodeConfig(max_new_tokens=36, num_beams=5, length_penalty=0.0)
"""the captioner's way to write: beam search for the most probable caption as a whole, not by the mean over its
tokens, so that a doubtful fact is rather left out"""


def captions_of(model: Blip, tokenizer: TextTokenizer, out: Path, split: str, samples: int,
                decode: DecodeConfig = GREEDY) -> tuple[list[str], list[Scene], list[str]]:  # fmt: skip
    """Captions of the first pictures of a split, their scenes and keys."""
    captions: list[str] = []
    scenes: list[Scene] = []
    keys: list[str] = []
    for batch in _batches(model, out, split, samples):
        memory = model.remember(model.encode_image(normalize(batch.images)))
        captions += [found[0].text for found in write_captions(model, tokenizer, memory, decode)]
        scenes += [scene_from_meta(meta) for meta in batch.meta]
        keys += batch.keys
    return captions, scenes, keys


def _batches(model: Blip, out: Path, split: str, samples: int) -> Any:
    size = model.config.vision.image_size
    return evaluation_batches((world_source(out, split),), size, samples=samples, batch_size=100, clean="simplify")


def quick_measure(model: Blip, tokenizer: TextTokenizer, out: Path) -> dict[str, float]:
    """Numbers for the curves, from 100 pictures of the val split."""
    numbers: dict[str, float] = {}
    if model.config.decoder:
        captions, scenes, _ = captions_of(model, tokenizer, out, "val", 100)
        report = caption_report(captions, scenes)
        numbers |= {f"caption_{name}": float(report[name]) for name in ("truth", "coverage", "fact_accuracy")}
    if model.config.encoder:
        found = evaluate_retrieval(model, tokenizer, _batches(model, out, "val", 100), rerank_k=10, max_length=40)
        kept = ("t2i_recall@1", "t2i_recall_itm@1", "i2t_recall_itm@1", "itm_accuracy")
        numbers |= {name: found[name] for name in kept}
    return numbers


def measure(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Measure what was learned on unseen pictures, known and new combinations, after each training."""
    results: dict[str, Any] = {split: {"pictures": plan.test_pictures} for split in SPLITS}
    for name in ("pretrain", "captioner", "matcher"):
        predictor = Predictor.load(out / name / "model", device="cpu", dtype="float32")
        model, tokenizer = predictor.model, predictor.tokenizer
        for split in SPLITS:
            results[split][name] = measure_model(model, tokenizer, out, split, plan)
            if name == "captioner":
                written = captions_of(model, tokenizer, out, split, plan.test_pictures, MOST_PROBABLE)
                results[split]["captioner_beam"] = caption_report(*written[:2])
    for split in SPLITS:
        source = open_source(world_source(out, split))
        samples = [source[index] for index in range(min(plan.test_pictures, len(source)))]
        scenes = [scene_from_meta(sample.meta) for sample in samples]
        results[split]["retrieval_ceiling@1"] = retrieval_ceiling([s.texts[0] for s in samples], scenes, k=1)
    return results


def measure_model(model: Blip, tokenizer: TextTokenizer, out: Path, split: str, plan: DemoPlan) -> dict[str, Any]:
    """What a model can do on a split: write, match and find, as far as it has the parts for it."""
    numbers: dict[str, Any] = {}
    if model.config.decoder:
        captions, scenes, _ = captions_of(model, tokenizer, out, split, plan.test_pictures)
        numbers |= caption_report(captions, scenes)
    if model.config.encoder:
        batches = _batches(model, out, split, plan.test_pictures)
        numbers |= evaluate_retrieval(model, tokenizer, batches, rerank_k=16, max_length=40)
    return numbers
