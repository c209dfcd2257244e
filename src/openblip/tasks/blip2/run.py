"""A BLIP-2 run from one configuration: data, model, stage, loop, evaluation, the model at the end.

    run_blip2(Blip2RunConfig(stage="stage1", sources=("captions.jsonl",)), "runs/stage1")

Stage 1, stage 2 and fine-tuning for captions, questions and retrieval are the same run with other settings;
`tasks.blip2.recipes` holds those of the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.config import to_dict
from openblip.core.runtime import rank, seed_everything, world_size
from openblip.data.measured import Measured
from openblip.data.sources.base import Source, SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.sources.questions import open_questions
from openblip.data.stream import Loader
from openblip.data.transforms import ImageTransform
from openblip.objectives.blip2 import OBJECTIVES, Blip2Stage1, Blip2Stage2
from openblip.tasks.blip2.build import build
from openblip.tasks.blip2.config import MAY_CHANGE, Blip2RunConfig
from openblip.tasks.blip2.evaluate import evaluate_blip2
from openblip.tasks.blip2.features import FeatureCache, NoPixels, fingerprint_of
from openblip.tasks.blip2.step import Blip2Step, prepare_answers, prepare_captions, prepare_stage1
from openblip.training.config import TrainConfig
from openblip.training.launch import start
from openblip.training.loop import TrainResult, train
from openblip.training.step import Prepare

__all__ = ["Blip2Evaluator", "loop_config", "make_step", "run_blip2"]

Blip2Evaluator = Callable[[StoredModel], dict[str, float]]
"""Further numbers of a model during training, e.g. the truth of captions in the synthetic world."""


def run_blip2(
    config: Blip2RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    evaluator: Blip2Evaluator | None = None,
    title: str = "training",
    show: bool = True,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train as `config` says; arguments, and what it raises, as `tasks.run.run_training`."""
    device = start(config.train.device)
    out = Path(out)
    sources = [_open(source, config) for source in config.sources]
    seed_everything(config.train.seed)
    stored = build(config, sources, out)
    stored.info |= {"stage": config.stage, "task": config.task, "prompt": config.prompt, "clean": config.clean}
    cache = FeatureCache.open(config.features, fingerprint_of(stored.model.vision)) if config.features else None
    if cache is not None:
        sources = [cache.source(source) for source in sources]
    step, prepare = make_step(config, stored, cache)
    asks = config.task == "questions"
    pixels = ImageTransform(replace(config.transform, image_size=stored.model.vision.pixels))
    loader = Loader(
        sources,
        pixels if cache is None else NoPixels(),
        config.batch_size,
        seed=config.train.seed,
        rank=rank(),
        world_size=world_size(),
        num_workers=config.num_workers,
        weights=[source.weight for source in config.sources],
        clean="none" if asks else config.clean,
        max_words=None if asks else config.max_words,
        skip_log=out / "skipped.jsonl",
        pin_memory=device.type == "cuda",
    )

    def evaluate(_module: nn.Module, _step: int) -> dict[str, float]:
        measured = Measured(out / "skipped.jsonl" if rank() == 0 else None)
        numbers = evaluate_blip2(config, stored, measured=measured)[0] if config.validation else {}
        return numbers | (evaluator(stored) if evaluator is not None else {})

    section = to_dict(config)
    del section["train"]  # the loop saves and compares it itself
    try:
        return train(
            loop_config(config),
            step,
            loader,
            out,
            prepare=prepare,
            evaluate=evaluate if config.validation or evaluator is not None else None,
            export=lambda folder: save_model(folder, stored, whole=config.save_whole),
            resume=resume,
            sections={"run": section, "model": to_dict(stored.model.config)},
            may_change=MAY_CHANGE,
            title=title,
            show=show,
            on_record=on_record,
        )
    finally:
        loader.close()


def loop_config(config: Blip2RunConfig) -> TrainConfig:
    """The loop's settings; several processes are told that an objective left out leaves its head unused."""
    if config.stage == "stage1" and set(config.objective.objectives) != set(OBJECTIVES):
        return replace(config.train, find_unused_parameters=True)
    return config.train


def _open(spec: SourceConfig, config: Blip2RunConfig) -> Source:
    return open_questions(replace(spec, pairs=True)) if config.task == "questions" else open_source(spec)


def make_step(config: Blip2RunConfig, stored: StoredModel, cache: FeatureCache | None) -> tuple[Blip2Step, Prepare]:
    """The step of a run and what prepares its batches; a `cache` gives features in place of pictures."""
    tokenizer, words, length = stored.tokenizer, stored.language_tokenizer, config.max_length
    if config.stage == "stage1":
        assert tokenizer is not None
        objective = Blip2Stage1(stored.model, config.objective, dec_id=tokenizer.dec_id)
        return Blip2Step(objective), prepare_stage1(tokenizer, max_length=length, cache=cache)
    assert words is not None
    both = {"encoder_decoder": stored.model.llm.is_encoder_decoder, "max_length": length, "prompt": config.prompt}
    step = Blip2Step(Blip2Stage2(stored.model, eos_id=words.eos_id))
    if config.task == "questions":
        assert tokenizer is not None
        return step, prepare_answers(tokenizer, words, cache=cache, **both)
    return step, prepare_captions(words, cache=cache, **both)
