"""A whole training run from one configuration: data, model, objectives, loop, evaluation, the model at the end.

    run_training(RunConfig(sources=("captions.jsonl",), model="base"), "runs/first")

Pre-training and every fine-tuning, of BLIP and of BLIP-2, are the same run with other settings; `recipes` holds
those of the papers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from openblip.checkpoints.store import save_model
from openblip.core.compute import DTYPES
from openblip.core.config import to_dict
from openblip.core.errors import UserError
from openblip.core.places import run_checkpoints
from openblip.core.runtime import rank, seed_everything, world_size
from openblip.core.sharing import sharing
from openblip.core.text import read_json
from openblip.data.cards.find import find_split
from openblip.data.measured import Measured
from openblip.data.sample import Batch
from openblip.data.sources.base import Source
from openblip.data.stream import Loader
from openblip.data.transforms import ImageTransform
from openblip.metrics.java import check_java
from openblip.tasks.config import MAY_CHANGE, RunConfig
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.feature_cache import DrawCrop, FeatureCache, describe_tower
from openblip.tasks.protocols import Adapter
from openblip.tasks.registry import FAMILIES, TASKS
from openblip.tasks.step import Training
from openblip.tasks.task import Evaluation, RunData
from openblip.training.launch import start
from openblip.training.loop import TrainResult, train

__all__ = ["Evaluator", "evaluate_model", "run_training", "set_up"]

Evaluator = Callable[[Adapter], dict[str, float]]
"""Further metrics of a model during training, e.g. the truth of captions in the scene world."""
_FIRST = 4096
"""images that weights may be started from"""


def run_training(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    evaluator: Evaluator | None = None,
    title: str = "training",
    show: bool = True,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train as `config` says; everything goes to the folder `out`, the usable model to `out/model`.

    Args:
        resume: continue from the newest checkpoint in `out`.
        evaluator: further metrics for each evaluation.

    Raises:
        UserError: a mistake in the configuration or the data.
        Interrupted: a signal came; everything is saved.
    """
    device = start(config.train.device)
    out = Path(out)
    section = to_dict(config)
    del section["train"]  # the loop saves and compares it itself
    if resume:
        config = _with_dtypes_of(config, out)
    adapter, sources, training = set_up(config, out)
    if show and rank() == 0 and not resume:
        for line in adapter.begun:
            print(line, file=sys.stderr)
    transform = ImageTransform(replace(config.transform, image_size=adapter.image_size))
    load = partial(
        Loader,
        sources,
        transform if not config.features else DrawCrop(),
        config.batch_size,
        seed=config.train.seed,
        num_workers=config.num_workers,
        weights=[source.weight for source in config.sources],
        epoch_shares=[source.epoch_share for source in config.sources],
        text_mode=training.text_mode,
        clean=training.clean,
        max_words=training.max_words,
        num_images=TASKS[config.task].num_images,
    )
    loader = load(
        rank=rank(),
        world_size=world_size(),
        skip_log=out / "skipped.jsonl",
        pin_memory=device.type == "cuda",
    )

    def begin() -> None:
        assert training.begin is not None
        with closing(load()) as first:
            training.begin(islice(first, -(-_FIRST // config.batch_size)))

    def evaluate(_module: nn.Module, _step: int) -> dict[str, float]:
        measured = Measured(out / "skipped.jsonl" if rank() == 0 else None)
        metrics: dict[str, float] = {}
        if config.validation:
            metrics, _ = evaluate_model(config, adapter, answers=training.answers, measured=measured)
        return metrics | (evaluator(adapter) if evaluator is not None else {})

    loop = config.train
    if training.find_unused_parameters:
        loop = replace(loop, find_unused_parameters=True)
    try:
        return train(
            loop,
            training.step,
            loader,
            out,
            prepare=training.prepare,
            evaluate=evaluate if config.validation or evaluator is not None else None,
            begin=begin if training.begin is not None else None,
            export=lambda folder: save_model(folder, adapter.stored, whole=config.save_whole),
            resume=resume,
            sections={"run": section, "model": to_dict(adapter.model.config)},
            may_change=MAY_CHANGE,
            title=title,
            show=show,
            on_record=on_record,
        )
    finally:
        loader.close()


def set_up(config: RunConfig, out: Path) -> tuple[Adapter, list[Source], Training]:
    """The model, the data and the training step of a run, before anything is learned.

    Args:
        out: the run's folder, where a tokenizer that is learned is kept.

    Raises:
        UserError: the family has no such task, or model or data cannot be had.
    """
    task, family = TASKS[config.task], FAMILIES[config.family]
    if config.family not in task.train:
        trained = f"available for {config.family}, but for {', '.join(task.train)}" if task.train else "trained"
        raise UserError(f'the task "{config.task}" is not {trained}')
    check_java(config.java_metrics)
    single = config.family in task.single
    sources = [task.open(replace(source, pairs=True) if single else source) for source in config.sources]
    seed_everything(config.train.seed)
    adapter = family.build(config, sources, out)
    adapter.info |= {"task": config.task, "prompt": config.prompt, "clean": config.clean}
    _check_length(config, adapter)
    cache = FeatureCache.open(config.features, describe_tower(adapter.model.vision)) if config.features else None
    if cache is not None:
        sources = [cache.source(source) for source in sources]
    training = task.train[config.family](config, adapter, RunData(sources, out, cache))
    if cache is not None and adapter.model.config.vision.trained:  # of a starting model; it gets no gradient here
        training = replace(training, find_unused_parameters=True)
    if config.task == "answering" and config.family == "blip":
        adapter.info["label_smoothing"] = config.answering.label_smoothing
    if training.answers:
        adapter.info["answers"] = list(training.answers)
    return adapter, sources, training


def _with_dtypes_of(config: RunConfig, out: Path) -> RunConfig:
    """`config` with the dtypes that frozen parts on "auto" had where the run in `out` began.

    Another machine may choose others, and could not resume the run: its parts would be rounded differently.
    """
    if not run_checkpoints(out):
        return config
    try:
        model = read_json(out / "config.json")["model"]
        began = {name: (model.get(name) or {}).get("dtype") for name in ("vision", "language")}
    except (OSError, UserError, AttributeError, KeyError, TypeError):  # the loop refuses to resume then
        return config
    for name, dtype in began.items():
        part = getattr(config, name)
        if part.dtype == "auto" and dtype in DTYPES:
            config = replace(config, **{name: replace(part, dtype=dtype)})
    return config


def _check_length(config: RunConfig, adapter: Adapter) -> None:
    """Refuse texts longer than what reads them has positions for.

    Dialogs are cut to these. BLIP-2's captions and answers are read by the language model alone, but for questions
    that the Q-Former reads too.
    """
    by_language = config.family == "blip2" and config.task in ("captioning", "answering")
    if config.task == "dialog" or (by_language and not getattr(adapter, "reads_questions", False)):
        return
    if config.max_length > adapter.max_positions:
        limit = adapter.max_positions
        raise UserError(f"max_length is {config.max_length}, and the model reads texts of at most {limit} tokens")


@torch.no_grad()
def evaluate_model(
    config: RunConfig, adapter: Adapter, *, answers: Sequence[str] = (), measured: Measured | None = None
) -> Evaluation:
    """Evaluate a model on the validation sources as its task says.

    Ranks share the samples out and all give the figures of the whole, unless each needs the others in every forward
    pass (blocks sharded by FSDP2): then each reads all samples.

    Args:
        answers: to choose from when the answers to questions are ranked; none leaves ranking out.
        measured: where samples that cannot be used are noted; their number is always given.

    Returns:
        metrics by name ("num_left_out" among them where anything could not be used), and one record for each
        image when captions were generated, or for each question.
    """
    task, model = TASKS[config.task], adapter.model
    was_training = model.training
    used = measured if measured is not None else Measured()
    model.eval()

    def batches(*, as_written: bool = False) -> Iterator[Batch]:
        return evaluation_batches(
            [task.open(source) for source in config.validation],
            adapter.image_size,
            samples=config.validation_samples,
            num_images=task.num_images,
            clean=config.clean if task.cleans else "none",
            as_written=as_written,
            need_texts=config.task != "composed"
            and (config.task != "captioning" or all(find_split(s).need_texts for s in config.validation)),
            measured=used,
        )

    with sharing(not any(isinstance(part, FSDPModule) for part in model.modules())):
        metrics, records = task.evaluate(config, adapter, batches, answers)
        used.join()
    model.train(was_training)
    return used.complete(metrics), records
