"""ITM re-ranking of 128 texts of about 12 tokens for an image: image-major against projecting for each pair.

The peer is this library's text encoder, driven as the original repository re-ranks: the image's features are
repeated for the texts and every pair projects keys and values of its own in every layer (`compute_itm` of BLIP's
`train_retrieval.py`); attention is written out and texts are padded to 35 tokens. transformers' model, which
projects for each pair too, is measured in `benchmarks.match`. Ours is `tasks.retrieval.match_logits`. ViT-B at 384.

From the measured rates the result predicts an evaluation of COCO's 5k test images with their 25,010 captions.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks import published
from benchmarks.harness import Subject, compare, dtypes_to_measure, result_of
from benchmarks.reference_path import pad_to, repeated_readers
from openblip.checkpoints.store import open_model
from openblip.core.memory import keep_freed_memory
from openblip.core.tokenizer import TokenBatch
from openblip.tasks.registry import adapt
from openblip.tasks.retrieval import match_logits, match_probability
from openblip.training.log import format_duration

TEXTS, SHORTEST, LONGEST, PADDED = 128, 8, 16, 35
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
COCO_IMAGES, COCO_TEXTS = 5000, 25010


def run(quick: bool, only: str | None = None) -> dict[str, Any]:
    """Measure both dtypes, or `only` one; `quick` takes two layers and 64 px."""
    dtypes = dtypes_to_measure(TOLERANCES, only)
    with published.published(published.matcher(quick)):
        rows = [
            compare(
                "benchmarks.rerank",
                f"{TEXTS} texts of an image",
                dtype=dtype,
                quick=quick,
                repeats=2 if quick else 3,
                tolerance=TOLERANCES[dtype],
                together=False,
            )
            for dtype in dtypes
        ]
        seconds = _seconds_for_an_image(dtypes[0])
    return result_of("rerank", rows, texts=TEXTS, **predicted(rows[0], seconds, k=128))


def predicted(row: dict[str, Any], encode_s: float, *, k: int) -> dict[str, Any]:
    """What an evaluation of COCO 5k takes with both sides, for a reader; it reads the best `k` of each query.

    Args:
        row: of `compare`, of TEXTS pairs.
        encode_s: seconds that the vision tower takes for an image.
    """
    # The best k texts of an image and the best k images of a text are seldom the same pairs.
    pairs = (COCO_IMAGES + COCO_TEXTS) * k
    times = {side: COCO_IMAGES * encode_s + pairs / TEXTS * row[f"{side}_s"] for side in ("ours", "peer")}
    return {
        "encode_s": round(encode_s, 4),
        "coco_5k_pairs": pairs,
        **{f"coco_5k_{side}": format_duration(seconds) for side, seconds in times.items()},
    }


def _seconds_for_an_image(dtype: str) -> float:
    ours = Ours(getattr(torch, dtype))
    with torch.no_grad():
        ours.adapter.encode(ours.pixels)
        start = time.perf_counter()
        ours.adapter.encode(ours.pixels)
    return time.perf_counter() - start


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side."""
    torch.set_grad_enabled(False)
    return (Ours if side == "ours" else Plain)(getattr(torch, dtype))


class Reranking(ABC):
    """An image's features and texts of unequal length; a run gives the ITM logits of each pair."""

    def __init__(self, dtype: torch.dtype) -> None:
        keep_freed_memory()
        self.adapter: Any = adapt(open_model(published.folder(), like="transformers"))
        self.adapter.move(torch.device("cpu"), dtype)
        size = self.adapter.image_size
        shape = (3, size, size) if isinstance(size, int) else (3, *size)
        self.pixels = torch.randint(
            0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
        )
        self.embeds = self.adapter.encode(self.pixels)
        lengths = torch.randint(SHORTEST, LONGEST + 1, (TEXTS,), generator=torch.Generator().manual_seed(3))
        mask = torch.arange(LONGEST) < lengths[:, None]
        self.text = TokenBatch(published.texts(TEXTS, LONGEST, published.ENC).masked_fill(~mask, 0), mask)

    def outputs(self) -> dict[str, float]:
        """Every pair's probability; a logit may be near 0, where no relative tolerance is right."""
        return {f"text {i}": float(value) for i, value in enumerate(match_probability(self.score()))}

    def run(self) -> None:
        """All pairs."""
        self.score()

    @abstractmethod
    def score(self) -> Tensor:
        """float32 [TEXTS, 2]."""


class Ours(Reranking):
    """This library."""

    def score(self) -> Tensor:
        """As the class says."""
        pairs = torch.stack((torch.arange(TEXTS), torch.zeros(TEXTS, dtype=torch.int64)), dim=1)
        return match_logits(self.adapter, self.embeds, self.text, pairs)


class Plain(Reranking):
    """Keys and values projected for each pair."""

    def score(self) -> Tensor:
        """As the class says."""
        model, text = self.adapter.model, pad_to(self.text, PADDED)
        ids = text.input_ids.clone()
        ids[:, 0] = self.adapter.tokenizer.enc_id if self.adapter.first == "enc" else self.adapter.tokenizer.cls_id
        logits: Tensor = model.itm_head(
            repeated_readers(model.encoder, ids, text.attention_mask, self.embeds)[:, 0]
        )
        return logits.float()
