"""A whole training run from one configuration: data, model, objectives, loop, evaluation, the model at the end.

    run_training(RunConfig(sources=("captions.jsonl",), model="base"), "runs/first")

Pre-training, fine-tuning a captioner, for retrieval and for questions are the same run with other settings;
`recipes` holds those of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.config import to_dict
from openblip.core.errors import UserError
from openblip.core.runtime import rank, seed_everything, world_size
from openblip.core.tokenizer import TextTokenizer
from openblip.data.batches import CleanText, TextMode
from openblip.data.measured import Measured
from openblip.data.sample import Batch, Sample
from openblip.data.sources.base import Source, SourceConfig
from openblip.data.sources.digest import Digest
from openblip.data.sources.open import open_source
from openblip.data.sources.questions import open_questions
from openblip.data.stream import Loader
from openblip.data.transforms import ImageTransform, evaluation_transform
from openblip.models.blip import Blip
from openblip.models.vqa import BlipVqa
from openblip.objectives.answering import VqaObjective
from openblip.objectives.pretraining import BlipPretraining
from openblip.tasks.answering import evaluate_answers
from openblip.tasks.build import answer_list, build_blip, build_vqa, training_texts
from openblip.tasks.caption import evaluate_captions
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.run_config import MAY_CHANGE, AnsweringConfig, RunConfig, as_sources, load_run_config
from openblip.tasks.step import BlipStep, make_prepare
from openblip.tasks.vqa_step import VqaStep, make_question_prepare
from openblip.training.launch import start
from openblip.training.loop import TrainResult, train
from openblip.training.step import Prepare

__all__ = [
    "AnsweringConfig",
    "Evaluator",
    "RunConfig",
    "as_sources",
    "evaluate_model",
    "evaluation_batches",
    "load_run_config",
    "run_training",
    "training_texts",
]

Evaluator = Callable[[Any, TextTokenizer], dict[str, float]]
"""Further numbers of a model during training, e.g. the truth of captions in the synthetic world."""


@dataclass(frozen=True)
class _Task:
    """What a run does with its data."""

    model: Blip | BlipVqa
    tokenizer: TextTokenizer
    step: nn.Module
    prepare: Prepare
    text_mode: TextMode
    clean: CleanText
    max_words: int | None
    info: dict[str, Any]
    """what is told of the model where it is saved"""
    answers: list[str] = field(default_factory=list)
    """to choose from when ranking"""


def _captions_task(config: RunConfig, sources: Sequence[Source], out: Path) -> _Task:
    model, tokenizer = build_blip(config, sources, out)
    objective = BlipPretraining(model, config.objective, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id)
    prompt_length = tokenizer.encode([config.prompt], end=False).input_ids.shape[1] if config.prompt else 0
    return _Task(
        model,
        tokenizer,
        BlipStep(objective, prompt_length=prompt_length),
        make_prepare(tokenizer, max_length=config.max_length, prompt=config.prompt),
        "random",
        config.clean,
        config.max_words,
        {"objectives": list(config.objective.objectives), "prompt": config.prompt, "clean": config.clean},
    )


def _vqa_task(config: RunConfig, sources: Sequence[Source], out: Path) -> _Task:
    model, tokenizer = build_vqa(config, sources, out)
    objective = VqaObjective(
        model,
        enc_id=tokenizer.enc_id,
        dec_id=tokenizer.dec_id,
        label_smoothing=config.answering.label_smoothing,
    )
    answers = answer_list(config, sources, out)
    return _Task(
        model,
        tokenizer,
        VqaStep(objective),
        make_question_prepare(tokenizer, clean=config.clean, max_length=config.max_length),
        "all",
        "none",  # answers are found by the question as it was given; it is cleaned when it is encoded
        None,
        {"task": "vqa", "clean": config.clean, "answers": answers},
        answers,
    )


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
        resume: go on from the newest checkpoint in `out`.
        evaluator: further numbers for each evaluation.

    Raises:
        UserError: a mistake in the configuration or the data.
        Interrupted: a signal came; everything is saved.
    """
    device = start(config.train.device)
    out = Path(out)
    opener, make_task = (open_questions, _vqa_task) if config.task == "vqa" else (open_source, _captions_task)
    sources = [opener(source) for source in config.sources]
    seed_everything(config.train.seed)
    task = make_task(config, sources, out)
    model, tokenizer = task.model, task.tokenizer
    loader = Loader(
        sources,
        ImageTransform(replace(config.transform, image_size=model.config.vision.image_size)),
        config.batch_size,
        seed=config.train.seed,
        rank=rank(),
        world_size=world_size(),
        num_workers=config.num_workers,
        weights=[source.weight for source in config.sources],
        text_mode=task.text_mode,
        clean=task.clean,
        max_words=task.max_words,
        skip_log=out / "skipped.jsonl",
        pin_memory=device.type == "cuda",
    )

    def evaluate(_module: nn.Module, _step: int) -> dict[str, float]:
        measured = Measured(out / "skipped.jsonl" if rank() == 0 else None)
        numbers: dict[str, float] = {}
        if config.validation:
            numbers, _ = evaluate_model(config, model, tokenizer, answers=task.answers, measured=measured)
        return numbers | (evaluator(model, tokenizer) if evaluator is not None else {})

    try:
        return train(
            config.train,
            task.step,
            loader,
            out,
            prepare=task.prepare,
            evaluate=evaluate if config.validation or evaluator is not None else None,
            export=lambda folder: save_model(folder, StoredModel(model, tokenizer, task.info)),
            resume=resume,
            sections={"run": _section(config), "model": to_dict(model.config)},
            may_change=MAY_CHANGE,
            title=title,
            show=show,
            on_record=on_record,
        )
    finally:
        loader.close()


def _section(config: RunConfig) -> dict[str, Any]:
    section = to_dict(config)
    del section["train"]  # the loop saves and compares it itself
    return section


def evaluation_batches(
    sources: tuple[SourceConfig, ...] | list[Source],
    image_size: int | tuple[int, int],
    *,
    samples: int,
    batch_size: int = 64,
    clean: Any,
    measured: Measured | None = None,
) -> Iterator[Batch]:
    """The first `samples` pictures in order, each with all its texts, resized whole.

    Nothing takes the place of a broken sample: it is left out and noted in `measured`.

    Raises:
        UserError: no picture can be used, or one cannot and there is no `measured` to note it in.
    """
    opened: list[Source] = []
    log = measured if measured is not None else Measured()
    log.num_images = 0
    left = samples
    for source in (s if isinstance(s, Source) else open_source(s) for s in sources):
        if left > 0:
            opened.append(FirstSamples(source, left))
        left -= len(source)
    loader = Loader(
        opened,
        evaluation_transform(image_size),
        batch_size,
        shuffle=False,
        drop_last=False,
        text_mode="all",
        clean=clean,
        max_words=None,
        leave_out=True,
        skip_log=log,
    )
    for batch in loader:
        if measured is None and log.left_out:
            break
        log.num_images += len(batch)
        yield batch
    if log.left_out and (measured is None or not log.num_images):
        first = log.left_out[0]
        said = f"{first['key']}, {first['cause']}: {first['detail']}"
        if measured is None:
            raise UserError(f"a measure cannot use a sample of {first['source']} ({said}); repair or remove it")
        raise UserError(f"there is nothing to measure on: no sample of {first['source']} can be used ({said})")


class FirstSamples(Source):
    """The first samples of a source."""

    def __init__(self, source: Source, count: int) -> None:
        super().__init__()
        self.name, self.bad_rows = source.name, source.bad_rows
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._source[index]

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        self._source.digest(digest, span, texts=texts)


@torch.no_grad()
def evaluate_model(
    config: RunConfig,
    model: Blip | BlipVqa,
    tokenizer: TextTokenizer,
    *,
    answers: Sequence[str] = (),
    measured: Measured | None = None,
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """Measure a model on the validation sources: what it can write, what it can match, how it answers.

    Args:
        answers: to choose from when the answers to questions are ranked; none leaves ranking out.
        measured: where samples that cannot be used are noted; their number is always given.

    Returns:
        numbers by name ("num_left_out" among them where anything could not be used), and one record for each
        picture when captions were written, or for each question.
    """
    was_training = model.training
    used = measured if measured is not None else Measured()
    model.eval()

    asks = isinstance(model, BlipVqa)

    def batches() -> Iterator[Batch]:
        return evaluation_batches(
            [open_questions(source) if asks else open_source(source) for source in config.validation],
            model.config.vision.image_size,
            samples=config.validation_samples,
            clean="none" if asks else config.clean,
            measured=used,
        )

    numbers: dict[str, float] = {}
    records: list[dict[str, object]] = []
    if isinstance(model, BlipVqa):
        numbers, records = evaluate_answers(
            model,
            tokenizer,
            batches(),
            config.decode,
            candidates=answers,
            keep=config.answering.keep,
            clean=config.clean,
            max_length=config.max_length,
            rule=config.answering.rule,
        )
        model.train(was_training)
        return numbers | used.numbers, records
    if model.config.encoder:
        numbers |= evaluate_retrieval(
            model, tokenizer, batches(), rerank_k=config.rerank_k, max_length=config.max_length
        )
    if model.config.decoder:
        scores, records = evaluate_captions(model, tokenizer, batches(), config.decode, prompt=config.prompt)
        numbers |= scores
    model.train(was_training)
    return numbers | used.numbers, records
