"""Pre-training: BLIP by ITC, ITM and LM, the Q-Former of BLIP-2 by ITC, ITM and ITG (stage 1)."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.tasks.captioning import evaluate_captions
from openblip.tasks.config import RunConfig
from openblip.tasks.pairs import train_blip, train_stage1
from openblip.tasks.protocols import Adapter
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.task import Batches, Evaluation, Task

__all__ = ["PRETRAINING"]


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """All that a model can do with images and captions: retrieval where it matches, captions where it generates."""
    metrics: dict[str, float] = {}
    records: list[dict[str, object]] = []
    if "match" in adapter.can:
        matcher = adapter.need("match")
        metrics |= evaluate_retrieval(
            matcher,
            batches(),
            rerank_k=config.rerank_k,
            max_length=config.max_length,
            max_words=config.max_words,
            max_bytes=config.rerank_memory,
        )
        metrics |= adapter.extra_metrics(batches, max_length=config.max_length)
    if "likelihood" in adapter.can:
        generator = adapter.need("likelihood")
        scores, records = evaluate_captions(
            generator,
            batches(as_written=True),
            config.decode,
            prompt=config.prompt,
            clean=config.clean,
            java_metrics=config.java_metrics,
        )
        metrics |= scores
    return metrics, records


PRETRAINING = Task(train={"blip": train_blip, "blip2": train_stage1}, evaluate=evaluate)
