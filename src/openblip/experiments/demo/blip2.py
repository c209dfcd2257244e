"""The demo's BLIP-2: the captioner's tower, frozen, and language models that have only read, also frozen.

The language models are trained on the spot, on text alone, and know the language and nothing of any image. A
Q-Former learns to read the tower (stage 1), then to tell a language model what it reads (stage 2), from captions;
no question is ever put together with an image before the models are asked.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from openblip.checkpoints.blip2_parts import open_language, open_language_tokenizer
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.world.dataset import scene_from_meta
from openblip.experiments.demo.blip import world_source
from openblip.experiments.demo.config import SPLITS, DemoPlan, tars_of
from openblip.experiments.demo.plan import STAGE1_TRAINED
from openblip.experiments.judges import blip2_stages as world
from openblip.experiments.judges.zero_shot import accuracy, answers, ask_about, descriptions, guessing
from openblip.models.configs import as_language
from openblip.tasks.families.blip2 import open_blip2
from openblip.tasks.training import run_training

__all__ = ["FOLDER", "ask", "first_stage", "read_texts", "second_stage"]

FOLDER = "blip2"


def read_texts(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Train two small language models for BLIP-2, of both kinds, on text alone."""
    steps = dict(zip(world.LANGUAGES, plan.language_steps, strict=True))
    for name, number in steps.items():
        result = world.train_world_language(
            name, _language(out, name).parent, count=plan.documents, steps=number,
            batch_size=plan.batch_size, seed=plan.seed, seconds=None if seconds is None else seconds / len(steps),
        )  # fmt: skip
        steps[name] = result.steps
    return {"documents": plan.documents, "steps": steps}


def first_stage(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """BLIP-2, stage 1: a Q-Former learns ITC, ITM and ITG over the captioner's tower, frozen."""
    began = time.perf_counter()
    source, tower = _images(out, plan), f"openblip:{out / 'captioner' / 'model'}"
    features = world.world_features(source, tower, out / FOLDER / "features")
    run = world.world_run(
        "stage1", source, features=features, steps=plan.stage1_steps, tower=tower, seed=plan.seed,
        batch_size=plan.blip2_batch_size, learning_rate=plan.learning_rate,
        seconds=None if seconds is None else seconds * STAGE1_TRAINED - (time.perf_counter() - began),
    )  # fmt: skip
    result = run_training(run, out / FOLDER / "stage1", resume=True, title="BLIP-2, stage 1")
    stored = open_blip2(out / FOLDER / "stage1" / "model")
    metrics = {
        split: world.measure_stage1(stored, run, world_source(out, split), plan.test_images) for split in SPLITS
    }
    return {"steps": result.steps, "trained_parameters": stored.model.num_trained(), **metrics}


def second_stage(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """BLIP-2, stage 2: the Q-Former learns what to tell each of the frozen language models."""
    source = _images(out, plan)
    found: dict[str, Any] = {}
    for name in world.LANGUAGES:
        run = world.world_run(
            "stage2", source, features=out / FOLDER / "features", steps=plan.stage2_steps, seed=plan.seed,
            model=str(out / FOLDER / "stage1" / "model"), language=str(_language(out, name)),
            batch_size=plan.blip2_batch_size, learning_rate=plan.learning_rate,
            seconds=None if seconds is None else seconds / len(world.LANGUAGES),
        )  # fmt: skip
        result = run_training(run, out / FOLDER / f"stage2-{name}", resume=True, title=f"BLIP-2, stage 2, {name}")
        found[name] = {"steps": result.steps, "seconds": result.seconds}
    return found


def ask(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Ask BLIP-2 questions, of which it met none together with an image; and let it write captions.

    Returns:
        for each split and language model what it answers without an image ("blind"), when it is "told" in words
        what is there, and when it "sees".
    """
    result: dict[str, Any] = {}
    for split in SPLITS:
        novel = split == "novel"
        source = open_source(world_source(out, split))
        scenes = [scene_from_meta(source[index].meta) for index in range(min(plan.test_images, len(source)))]
        asked = ask_about(scenes, novel=novel)
        told = descriptions(scenes, seed=plan.seed, split=split)
        result[split] = {"guessing": guessing(asked), "questions": len(asked)}
        for name in world.LANGUAGES:
            settings = as_language(str(_language(out, name)))
            llm, language_tokenizer = open_language(settings), open_language_tokenizer(settings)
            stored = open_blip2(out / FOLDER / f"stage2-{name}" / "model")
            result[split][name] = {
                "blind": accuracy(asked, answers(llm, language_tokenizer, asked)),
                "told": accuracy(asked, answers(llm, language_tokenizer, asked, told=told)),
                "sees": world.measure_stage2(stored, world_source(out, split), plan.test_images, novel=novel),
            }
    return result


def _language(out: Path, name: str) -> Path:
    return out / FOLDER / f"language-{name}" / "model"


def _images(out: Path, plan: DemoPlan) -> SourceConfig:
    """The first of the images with true captions, whole tars of them."""
    return world_source(out, f"human/{tars_of(min(plan.blip2_images, plan.human_images))}")
