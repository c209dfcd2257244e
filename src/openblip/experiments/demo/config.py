"""Sizes of the demo, and where its stages leave what they report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openblip.core.text import read_json
from openblip.experiments.presets import LEARNING_RATE

__all__ = ["IMAGES_IN_A_TAR", "SPLITS", "DemoPlan", "left_by", "tars_of"]

SPLITS = ("test", "novel")
"""unseen images of known combinations, and of combinations of shape and colour never seen in training"""
IMAGES_IN_A_TAR = 250


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """What the demo does; `plan.make_plan` chooses it for a time on this machine."""

    model: Literal["micro", "nano"] = "micro"
    """size of the BLIP models"""
    web_images: int
    """with one noisy web text each"""
    human_images: int
    """with three true captions each"""
    simple_images: int
    """of a single object, with three true captions each; pre-training learns the names of things from them"""
    test_images: int
    """of each split that is measured"""
    pretrain_steps: int
    captioner_steps: int
    matcher_steps: int
    capfilt_images: int
    """web images that CapFilt cleans"""
    again_steps: int
    """of each of the two new models that learn from the web pairs as found, and cleaned"""
    documents: int
    """that BLIP-2's language models read, about scenes that nobody is shown"""
    language_steps: tuple[int, int]
    """of the decoder and of the encoder-decoder"""
    blip2_images: int
    """of those with true captions, that BLIP-2 learns from"""
    stage1_steps: int
    stage2_steps: int
    """of each of the two language models"""
    batch_size: int = 64
    blip2_batch_size: int = 32
    """of both stages of BLIP-2, which get further in the same time by more steps"""
    learning_rate: float = LEARNING_RATE
    seed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """planned for each stage; without them a stage of training takes exactly the steps named here, with them it
    measures its speed and takes as many as fit"""


def tars_of(images: int) -> str:
    """Pattern of the tars that hold the first `images` images, whole tars of them."""
    last = -(-images // IMAGES_IN_A_TAR) - 1
    return f"{{000000..{last:06d}}}.tar" if last else "000000.tar"


def left_by(out: Path, stage: str) -> dict[str, Any]:
    """What a stage of the demo in `out` reported, with its "seconds"."""
    reported: dict[str, Any] = read_json(out / "stages" / f"{stage}.json")
    return reported
