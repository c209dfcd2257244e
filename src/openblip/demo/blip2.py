"""The demo's BLIP-2: the captioner's tower, frozen, and language models that have only read, also frozen.

The language models are trained on the spot, on text alone, and know the language and nothing of any picture. A
Q-Former learns to read the tower (stage 1), then to tell a language model what it reads (stage 2), from captions;
no question is ever put together with a picture before the models are asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.checkpoints.blip2_parts import as_language, open_language, open_language_tokenizer
from openblip.data.sources.base import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.world.dataset import scene_from_meta
from openblip.demo.blip import world_source
from openblip.demo.config import SPLITS, DemoConfig
from openblip.tasks.blip2 import world
from openblip.tasks.blip2.build import open_blip2
from openblip.tasks.blip2.run import run_blip2
from openblip.tasks.blip2.zero_shot import accuracy, answers, ask_about, descriptions, guessing

__all__ = ["FOLDER", "ask", "first_stage", "read_texts", "second_stage"]

FOLDER = "blip2"
_PICTURES_IN_A_TAR = 1000


def read_texts(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Train two small language models for BLIP-2, of both kinds, on text alone."""
    steps = dict(zip(world.LANGUAGES, config.language_steps, strict=True))
    for name, number in steps.items():
        world.train_world_language(
            name, _language(out, name).parent, count=config.documents, steps=number,
            batch_size=config.batch_size, seed=config.seed,
        )  # fmt: skip
    return {"documents": config.documents, "steps": steps}


def first_stage(out: Path, config: DemoConfig) -> dict[str, Any]:
    """BLIP-2, stage 1: a Q-Former learns ITC, ITM and ITG over the captioner's tower, frozen."""
    source, tower = _pictures(out, config), f"openblip:{out / 'captioner' / 'model'}"
    features = world.world_features(source, tower, out / FOLDER / "features")
    run = world.world_run(
        "stage1", source, features=features, steps=config.stage1_steps, tower=tower, seed=config.seed,
        batch_size=config.batch_size, learning_rate=config.learning_rate,
    )  # fmt: skip
    result = run_blip2(run, out / FOLDER / "stage1", resume=True, title="BLIP-2, stage 1")
    stored = open_blip2(out / FOLDER / "stage1" / "model")
    numbers = {
        split: world.measure_stage1(stored, run, world_source(out, split), config.test_pictures) for split in SPLITS
    }
    return {"steps": result.steps, "trained_parameters": stored.model.num_trained(), **numbers}


def second_stage(out: Path, config: DemoConfig) -> dict[str, Any]:
    """BLIP-2, stage 2: the Q-Former learns what to tell each of the frozen language models."""
    source = _pictures(out, config)
    found: dict[str, Any] = {}
    for name in world.LANGUAGES:
        run = world.world_run(
            "stage2", source, features=out / FOLDER / "features", steps=config.stage2_steps, seed=config.seed,
            model=str(out / FOLDER / "stage1" / "model"), language=str(_language(out, name)),
            batch_size=config.batch_size, learning_rate=config.learning_rate,
        )  # fmt: skip
        result = run_blip2(run, out / FOLDER / f"stage2-{name}", resume=True, title=f"BLIP-2, stage 2, {name}")
        found[name] = {"steps": result.steps, "seconds": result.seconds}
    return found


def ask(out: Path, config: DemoConfig) -> dict[str, Any]:
    """Ask BLIP-2 questions, of which it met none together with a picture; and let it write captions.

    Returns:
        for each split and language model what it answers without a picture ("blind"), when it is "told" in words
        what is there, and when it "sees".
    """
    result: dict[str, Any] = {}
    for split in SPLITS:
        novel = split == "novel"
        source = open_source(world_source(out, split))
        scenes = [scene_from_meta(source[index].meta) for index in range(min(config.test_pictures, len(source)))]
        asked = ask_about(scenes, novel=novel)
        told = descriptions(scenes, seed=config.seed, split=split)
        result[split] = {"guessing": guessing(asked), "questions": len(asked)}
        for name in world.LANGUAGES:
            settings = as_language(str(_language(out, name)))
            llm, words = open_language(settings), open_language_tokenizer(settings)
            stored = open_blip2(out / FOLDER / f"stage2-{name}" / "model")
            result[split][name] = {
                "blind": accuracy(asked, answers(llm, words, asked)),
                "told": accuracy(asked, answers(llm, words, asked, told=told)),
                "sees": world.measure_stage2(stored, world_source(out, split), config.test_pictures, novel=novel),
            }
    return result


def _language(out: Path, name: str) -> Path:
    return out / FOLDER / f"language-{name}" / "model"


def _pictures(out: Path, config: DemoConfig) -> SourceConfig:
    """The first of the pictures with true captions, whole tars of them."""
    last = -(-min(config.blip2_pictures, config.human_pictures) // _PICTURES_IN_A_TAR) - 1
    tars = f"{{000000..{last:06d}}}.tar" if last else "000000.tar"
    return world_source(out, f"human/{tars}")
