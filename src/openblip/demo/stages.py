"""The demo: BLIP learns from scratch in a drawn world where truth is known, and shows what it learned.

    openblip demo                 # at most twenty minutes on two cores, then open runs/demo/report.html
    openblip demo --quick         # a look in two minutes
    openblip demo --stage report  # one stage again, from what the others left

The demo is a list of stages, each a function of one folder; a stage that is finished is not run again, and
one that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from openblip.core.errors import UserError, nearest
from openblip.core.files import write_json
from openblip.core.runtime import machine, versions
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sources.base import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.transforms import ImageTransformConfig, normalize
from openblip.data.world.dataset import WorldConfig, scene_from_meta, write_world
from openblip.data.world.scene import Scene
from openblip.data.world.truth import caption_report, retrieval_ceiling
from openblip.generation.types import DecodeConfig
from openblip.models.blip import Blip
from openblip.objectives.pretraining import ObjectiveConfig
from openblip.recipes import SHORT_RUN
from openblip.tasks.caption import write_captions
from openblip.tasks.predictor import Predictor
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.run import RunConfig, evaluation_batches, run_training
from openblip.training.config import TrainConfig

__all__ = ["QUICK", "STAGES", "DemoConfig", "run_demo"]

SPLITS = ("test", "novel")
"""unseen pictures of known combinations, and of combinations of shape and colour never seen in training"""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demo; the defaults are for two cores and at most twenty minutes."""

    web_pictures: int = 8000
    """with one noisy web text each"""
    human_pictures: int = 16_000
    """with three true captions each"""
    test_pictures: int = 200
    """of each split that is measured"""
    pretrain_steps: int = 600
    captioner_steps: int = 1350
    matcher_steps: int = 300
    again_steps: int = 200
    """of each of the two new models that learn from the web pairs as they were found, and cleaned"""
    documents: int = 8000
    """that BLIP-2's language models read, about scenes that nobody is shown"""
    language_steps: tuple[int, int] = (450, 450)
    """of the decoder and of the encoder-decoder"""
    blip2_pictures: int = 6000
    """of those with true captions, that BLIP-2 learns from"""
    stage1_steps: int = 150
    stage2_steps: int = 150
    """of each of the two language models"""
    batch_size: int = 64
    learning_rate: float = 4e-3
    seed: int = 0


QUICK = DemoConfig(
    web_pictures=1500, human_pictures=3000, test_pictures=100,
    pretrain_steps=80, captioner_steps=100, matcher_steps=30, again_steps=10,
    documents=1000, language_steps=(10, 10), blip2_pictures=1000, stage1_steps=10, stage2_steps=10,
)  # fmt: skip


def make_world(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Draw the pictures: noisy web pairs as tars, true captions as a captions file, two splits to measure on."""
    console = Console()
    wanted = {
        "web": WorldConfig(split="train", num_samples=config.web_pictures, text="web", seed=config.seed + 1),
        "human": WorldConfig(split="train", num_samples=config.human_pictures, seed=config.seed + 2),
        "val": WorldConfig(split="val", num_samples=config.test_pictures, seed=config.seed),
        **{s: WorldConfig(split=s, num_samples=config.test_pictures, seed=config.seed) for s in SPLITS},  # type: ignore[arg-type]
    }
    for name, world in wanted.items():
        console.print(f"  drawing {world.num_samples} pictures of the {world.split} split ({name})")
        write_world(out / "world" / name, world, layout="tars")
    return {name: world.num_samples for name, world in wanted.items()}


def _source(out: Path, name: str, **settings: Any) -> SourceConfig:
    return SourceConfig(path=str(out / "world" / name), text_column="captions", meta_columns=("scene",), **settings)


def run_config(out: Path, config: DemoConfig) -> RunConfig:
    """The demo's pre-training, which its other trainings are variations of."""
    return RunConfig(
        sources=(_source(out, "web", weight=1.0), _source(out, "human", weight=3.0)),
        model="micro",
        vocab_size=1000,
        transform=ImageTransformConfig(crop_scale=None, flip=False, ops=()),
        batch_size=config.batch_size,
        max_length=40,
        max_words=40,
        objective=SHORT_RUN,
        train=TrainConfig(
            max_steps=config.pretrain_steps,
            optimizer="muon",
            learning_rate=config.learning_rate,
            min_learning_rate=1e-5,
            warmup_steps=50,
            warmup_learning_rate=1e-5,
            schedule="cosine",
            betas=(0.9, 0.98),
            weight_decay_on="matrices",
            clip_norm=3.0,
            seed=config.seed,
            log_every=10,
            evaluate_every_epochs=0,
            evaluate_every_steps=max(40, config.pretrain_steps // 5),
            checkpoint_every=200,
            keep_checkpoints=1,
        ),
    )


def pretrain(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Pre-train with ITC, ITM and LM on the noisy web pairs and the human pairs together."""
    return _train(out, run_config(out, config), "pretrain", "pre-training")


def tune_captioner(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Fine-tune a captioner (LM alone) on the human pairs."""
    objective = replace(SHORT_RUN, objectives=("lm",))
    return _tune(out, config, "captioner", objective, config.captioner_steps)


def tune_matcher(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Fine-tune a matcher (ITC and ITM) on the human pairs: for retrieval, and to filter texts."""
    # Most negatives drawn evenly: the matcher is to filter texts of any other picture too.
    objective = replace(SHORT_RUN, objectives=("itc", "itm"), hard_share=0.2)
    return _tune(out, config, "matcher", objective, config.matcher_steps)


def _tune(
    out: Path, config: DemoConfig, name: Literal["captioner", "matcher"], objective: ObjectiveConfig, steps: int
) -> dict[str, Any]:
    base = run_config(out, config)
    run = replace(
        base,
        sources=(_source(out, "human"),),
        model=str(out / "pretrain" / "model"),
        parts=name,
        objective=objective,
        train=replace(base.train, max_steps=steps, evaluate_every_steps=max(40, steps // 3)),
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
MOST_PROBABLE = DecodeConfig(max_new_tokens=36, num_beams=3, length_penalty=0.0)
"""the captioner's way to write: beams as in the paper, ranked by their whole probability and not by its mean over
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
    return evaluation_batches((_source(out, split),), size, samples=samples, batch_size=100, clean="simplify")


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


def measure(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Measure what was learned on unseen pictures, known and new combinations, after each training."""
    results: dict[str, Any] = {split: {"pictures": config.test_pictures} for split in SPLITS}
    for name in ("pretrain", "captioner", "matcher"):
        predictor = Predictor.load(out / name / "model", device="cpu", dtype="float32")
        model, tokenizer = predictor.model, predictor.tokenizer
        for split in SPLITS:
            results[split][name] = measure_model(model, tokenizer, out, split, config)
            if name == "captioner":
                written = captions_of(model, tokenizer, out, split, config.test_pictures, MOST_PROBABLE)
                results[split]["captioner_beam"] = caption_report(*written[:2])
    for split in SPLITS:
        source = open_source(_source(out, split))
        samples = [source[index] for index in range(min(config.test_pictures, len(source)))]
        scenes = [scene_from_meta(sample.meta) for sample in samples]
        results[split]["retrieval_ceiling@1"] = retrieval_ceiling([s.texts[0] for s in samples], scenes, k=1)
    return results


def measure_model(
    model: Blip, tokenizer: TextTokenizer, out: Path, split: str, config: DemoConfig
) -> dict[str, Any]:
    """What a model can do on a split: write, match and find, as far as it has the parts for it."""
    numbers: dict[str, Any] = {}
    if model.config.decoder:
        captions, scenes, _ = captions_of(model, tokenizer, out, split, config.test_pictures)
        numbers |= caption_report(captions, scenes)
    if model.config.encoder:
        batches = _batches(model, out, split, config.test_pictures)
        numbers |= evaluate_retrieval(model, tokenizer, batches, rerank_k=16, max_length=40)
    return numbers


def clean_web(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Clean the noisy web pairs with CapFilt: the captioner writes, the matcher filters."""
    from openblip.demo import capfilt

    return capfilt.clean_web(out, config)


def learn_anew(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Train two new models for equally long, on the web pairs as they were found and on the cleaned ones."""
    from openblip.demo import capfilt

    return capfilt.learn_anew(out, config)


def read_texts(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Train two small language models for BLIP-2, of both kinds, on text alone."""
    from openblip.demo import blip2

    return blip2.read_texts(out, config)


def first_stage(out: Path, config: DemoConfig) -> dict[str, Any]:
    """BLIP-2, stage 1: a Q-Former learns ITC, ITM and ITG over the captioner's tower, frozen."""
    from openblip.demo import blip2

    return blip2.first_stage(out, config)


def second_stage(out: Path, config: DemoConfig) -> dict[str, Any]:
    """BLIP-2, stage 2: the Q-Former learns what to tell each of the frozen language models."""
    from openblip.demo import blip2

    return blip2.second_stage(out, config)


def ask(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Ask BLIP-2 questions, of which it met none together with a picture."""
    from openblip.demo import blip2

    return blip2.measure(out, config)


def report(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Write report.html from what the stages left."""
    from openblip.demo.page import unpack_pictures, write_demo_report

    unpack_pictures(out / "world" / "novel-pictures", out / "world" / "novel", config.test_pictures)
    target = write_demo_report(out, config)
    return {"report": str(target.name)}


Stage = Callable[[Path, DemoConfig], dict[str, Any]]

STAGES: dict[str, Stage] = {
    "world": make_world,
    "pretrain": pretrain,
    "captioner": tune_captioner,
    "matcher": tune_matcher,
    "measure": measure,
    "capfilt": clean_web,
    "again": learn_anew,
    "language": read_texts,
    "stage1": first_stage,
    "stage2": second_stage,
    "zero-shot": ask,
    "report": report,
}


def run_demo(out: Path, config: DemoConfig, *, only: tuple[str, ...] = (), again: bool = False) -> Path:
    """Run the stages that are not finished; returns the report's path.

    Args:
        config: `QUICK` for a look in two minutes.
        only: names of stages to run alone.
        again: run stages even if they are finished.

    Raises:
        UserError: an unknown stage, or a stage whose predecessors have not run.
    """
    console = Console()
    for name in only:
        if name not in STAGES:
            raise UserError(f'the demo has no stage "{name}"{nearest(name, STAGES)}')
    out.mkdir(parents=True, exist_ok=True)
    _same_demo(out, config)
    began = time.perf_counter()
    for number, (name, stage) in enumerate(STAGES.items(), 1):
        marker = out / "stages" / f"{name}.json"
        if only and name not in only:
            continue
        if marker.exists() and not again and name not in only and name != "report":
            console.print(f"[bold]{number}/{len(STAGES)} {name}[/] is done already")
            continue
        earlier = [other for other in list(STAGES)[: number - 1] if not (out / "stages" / f"{other}.json").exists()]
        if earlier:
            raise UserError(f'stage "{name}" needs "{earlier[0]}" first; run: openblip demo --out {out}')
        console.print(f"[bold]{number}/{len(STAGES)} {name}[/] {(stage.__doc__ or '').splitlines()[0]}")
        start = time.perf_counter()
        found = stage(out, config)
        write_json(marker, {"seconds": round(time.perf_counter() - start, 1), **found})
    target = out / "report.html"
    console.print(
        f"\nDone in {(time.perf_counter() - began) / 60:.1f} minutes. Open [bold]{target}[/] in a browser, "
        "then try:\n"
        f"  openblip caption {out}/world/novel-pictures --model {out}/captioner/model\n"
        f'  openblip retrieve "a red circle" {out}/world/novel-pictures --model {out}/pretrain/model\n'
        f"  openblip ask {out}/world/novel-pictures --model {out}/blip2/stage2-decoder/model "
        '--question "how many objects are there?"',
        soft_wrap=True,
    )
    return target


def _same_demo(out: Path, config: DemoConfig) -> None:
    from openblip.core.config import differences, to_dict

    path = out / "demo.json"
    settings = to_dict(config)
    if path.exists():
        old = json.loads(path.read_text())["config"]
        changed = differences(old, settings)
        if changed:
            raise UserError(f"{out} holds a demo with other settings ({changed[0]}); choose another --out")
    else:
        write_json(path, {"config": settings, "versions": versions(), "machine": machine()})
