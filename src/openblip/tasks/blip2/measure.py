"""Measuring a finished BLIP-2 model on any data, as `openblip evaluate` does."""

from __future__ import annotations

from typing import Any

from openblip.data.measured import Measured
from openblip.generation.types import DecodeConfig
from openblip.tasks.blip2.config import Blip2RunConfig
from openblip.tasks.blip2.evaluate import evaluate_blip2
from openblip.tasks.run_config import as_sources

__all__ = ["evaluate_any_blip2"]


def evaluate_any_blip2(
    predictor: Any,
    data: tuple[str, ...],
    *,
    samples: int,
    rerank_k: int,
    decode: DecodeConfig,
    measured: Measured | None = None,
) -> tuple[dict[str, float], list[dict[str, object]]]:
    """`evaluate_blip2` with the settings that the model was trained with.

    Args:
        predictor: a `Blip2Predictor`.
        measured: as for `evaluate_blip2`.
    """
    asks = predictor.info.get("task") == "questions"
    config = Blip2RunConfig(
        stage="stage1" if predictor.model.language is None else "stage2",
        sources=as_sources(data),
        validation=as_sources(data),
        validation_samples=samples,
        rerank_k=rerank_k,
        task="questions" if asks else "captions",
        prompt=predictor.question_prompt if asks else predictor.prompt,
        max_length=min(64, predictor.model.config.qformer.max_positions),
        clean=predictor.info.get("clean", "simplify"),
        decode=decode,
    )
    return evaluate_blip2(config, predictor.stored, measured=measured)
