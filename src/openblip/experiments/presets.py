"""The preset of the experiments' short runs: models from scratch in minutes on a CPU.

It is the recipe of small models (`recipes.small_pretrain`: Muon, no queue, no momentum copy, few hard negatives)
with a warm-up and intervals that fit runs of a few hundred steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openblip.data.source_config import SourceConfig
from openblip.data.transform_config import ImageTransformConfig
from openblip.recipes.small import small_pretrain
from openblip.tasks.config import RunConfig
from openblip.training.config import TrainConfig, within

__all__ = ["LEARNING_RATE", "SCENE_VOCABULARY", "WHOLE_IMAGE", "scene_blip", "short_train"]

LEARNING_RATE = 4e-3
_SCENES = ("world:train",)
WHOLE_IMAGE = ImageTransformConfig(crop_scale=None, flip=False, ops=())
"""for the scene world: "to the left of" is false in a mirror image, counts are false in a crop"""
SCENE_VOCABULARY = 1000
"""tokens at most of a tokenizer that is trained on the scene world's captions"""


def short_train(steps: int, *, seconds: float | None = None, warmup_steps: int = 50, **changes: Any) -> TrainConfig:
    """Training for `steps` steps, evaluated at the end alone.

    Args:
        seconds: that training is to take, with as many steps as fit; None trains exactly `steps`.
        warmup_steps: at most a fifth of `steps`.
        changes: other fields of `TrainConfig`.
    """
    preset: dict[str, Any] = {
        "max_steps": steps,
        "learning_rate": LEARNING_RATE,
        "min_learning_rate": 1e-5,
        "warmup_steps": min(warmup_steps, steps // 5),
        "warmup_learning_rate": 1e-5,
        "evaluate_every_steps": 0,
        "checkpoint_every": max(100, steps // 4),
        "keep_checkpoints": 1,
    }
    return within(replace(small_pretrain(_SCENES).train, **(preset | changes)), seconds)


def scene_blip(
    sources: tuple[SourceConfig, ...],
    *,
    size: str,
    steps: int,
    batch_size: int = 64,
    seconds: float | None = None,
    **train: Any,
) -> RunConfig:
    """Pre-training of a small BLIP from scratch in the scene world.

    Args:
        size: "nano" or "micro".
        seconds, train: as for `short_train`.
    """
    return replace(
        small_pretrain(_SCENES, model=size, steps=steps),
        sources=sources,
        transform=WHOLE_IMAGE,
        vocab_size=SCENE_VOCABULARY,
        batch_size=batch_size,
        train=short_train(steps, seconds=seconds, **train),
    )
