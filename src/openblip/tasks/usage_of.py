"""The work of an evaluation and of CapFilt, counted from data and settings before it is begun.

counts = count_data("captioning", config.validation, samples=5000)
predicted = usage(evaluation_work(adapter, config, counts, dtype), GPUS["h100"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig
from openblip.generation.config import DecodeConfig
from openblip.tasks.config import DIALOG_TOKENS, RunConfig, TaskName
from openblip.tasks.protocols import Adapter
from openblip.tasks.registry import TASKS
from openblip.tasks.usage import ModelCosts, Work, model_costs

__all__ = ["Counts", "capfilt_work", "count_data", "evaluation_work"]

_LOOKED_AT = 100
"""samples whose texts are counted"""
_TOKENS_OF_A_WORD = 1.3
_BATCH = 64
"""of evaluations, as of `tasks.evaluation`"""
_CANDIDATES, _ANSWER_TOKENS = 100, 5
"""of a round of a dialog, and tokens of an answer to rank"""
_DEFAULT_TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What the data hold, texts by what the samples that were looked at have."""

    images: int
    """or pairs of images, or videos"""
    texts: int
    text_tokens: int
    """of one of them"""
    frames: int = 1
    """of a video; an image has one"""


def count_data(task: TaskName, sources: Sequence[SourceConfig], *, samples: int) -> Counts:
    """Count the first `samples` samples; no image is decoded.

    Raises:
        UserError: the data cannot be opened.
    """
    images, texts, looked_at, words, frames = 0, 0.0, 0, 0, 1
    for config in sources:
        source = TASKS[task].open(config)
        count = min(len(source), samples - images)
        if not count:
            continue
        found, places = [], range(0, count, -(-count // _LOOKED_AT))
        for place in places:
            try:
                found.append(source[place])
            except BrokenSample:
                continue
        own = [text for sample in found for text in sample.texts]
        texts += count * len(own) / max(1, len(found))
        looked_at, words = looked_at + len(own), words + sum(len(text.split()) for text in own)
        images, frames = images + count, max(frames, source.frames)
    each = round(_TOKENS_OF_A_WORD * words / looked_at) + 2 if looked_at else _DEFAULT_TOKENS
    return Counts(images=images, texts=round(texts), text_tokens=each, frames=max(1, frames))


def evaluation_work(
    adapter: Adapter, config: RunConfig, counts: Counts, dtype: torch.dtype, *, candidates: int = 0
) -> list[Work]:
    """What `evaluate_model` makes a model do.

    Args:
        adapter: of a model on "meta".
        candidates: answers to rank, or classes.

    Raises:
        UserError: an evaluation of the task is not predicted.
    """
    task = config.task
    if task == "composed":
        raise UserError("an evaluation of composed retrieval is not predicted; leave --dry-run out")
    length = DIALOG_TOKENS if task == "dialog" else min(counts.text_tokens, config.max_length)
    costs = model_costs(adapter, dtype, batch=max(1, _BATCH // counts.frames), text_tokens=length)
    images, texts, seen = counts.images, counts.texts, counts.images * counts.frames
    tokens = float(texts * length)
    if task == "nlvr":
        return [Work(name="statements", costs=costs, images=images, read=texts)]
    if task == "classification":
        return [Work(name="classes", costs=costs, images=seen, embedded=candidates)]
    if task == "dialog":
        ranked = float(texts * _CANDIDATES * _ANSWER_TOKENS)
        return [Work(name="dialogs", costs=costs, images=seen, read=texts, likelihoods=ranked)]
    if task == "answering":
        kept = min(candidates, config.answering.keep) if adapter.family == "blip" else candidates
        ranked = float(texts * kept * _ANSWER_TOKENS)
        answers = Work(
            name="answers",
            costs=costs,
            images=seen,
            read=texts,
            written=texts,
            decode=config.decode,
            likelihoods=ranked,
        )
        return [answers]
    work = []
    if "match" in adapter.can and task != "captioning":
        # As many pairs as both directions have where none is in both, and those that ITM's accuracy reads.
        pairs = min(config.rerank_k, images) * texts + min(config.rerank_k, texts) * images + 2 * texts
        read = pairs if config.rerank_k and images > 1 else 0
        work.append(Work(name="retrieval", costs=costs, images=seen, read=read, embedded=texts))
        if adapter.family == "blip2":
            work.append(Work(name="ITG", costs=costs, images=seen, read=texts))
    if "likelihood" in adapter.can:
        captions = Work(
            name="captions", costs=costs, images=seen, written=images, decode=config.decode, likelihoods=tokens
        )
        work.append(captions)
    return work or [Work(name="features", costs=costs, images=seen, embedded=texts)]


def capfilt_work(
    captioner: Adapter | None,
    judge: Adapter | None,
    decode: DecodeConfig,
    counts: Counts,
    dtype: torch.dtype,
    *,
    batch: int,
    max_length: int,
) -> list[Work]:
    """What CapFilt makes its models do: captions are written for each image, then all texts are judged.

    Args:
        captioner: of a model on "meta", as `judge`; None writes or judges nothing. It may be the same.
    """
    work: list[Work] = []
    judging = None
    if judge is not None:
        judging = _costs_for(judge, "match", "--filter", dtype, batch, min(counts.text_tokens, max_length))
    written = 0
    if captioner is not None:
        written = counts.images * decode.num_sequences
        own = judging if captioner is judge else None
        costs = own or _costs_for(captioner, "caption", "--captioner", dtype, batch, counts.text_tokens)
        seen = 0 if own else counts.images  # one model's features serve both
        work.append(Work(name="captioner", costs=costs, images=seen, written=counts.images, decode=decode))
    texts = counts.texts + written
    if judging is not None:
        work.append(Work(name="filter", costs=judging, images=counts.images, read=texts, embedded=texts))
    return work


def _costs_for(
    adapter: Adapter, what: str, option: str, dtype: torch.dtype, batch: int, text_tokens: int
) -> ModelCosts:
    if what not in adapter.can:
        raise UserError(f"the model of {option} cannot {what}: it can {', '.join(sorted(adapter.can))}")
    return model_costs(adapter, dtype, batch=batch, text_tokens=text_tokens)
