"""Sizes of the demo, and where its stages leave what they tell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["QUICK", "SPLITS", "DemoConfig", "left_by"]

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
    stage1_steps: int = 250
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


def left_by(out: Path, stage: str) -> dict[str, Any]:
    """What a stage of the demo in `out` told, with its "seconds"."""
    told: dict[str, Any] = json.loads((out / "stages" / f"{stage}.json").read_text(encoding="utf-8"))
    return told
