"""Runs for small data on a laptop: small models from scratch, or small models fine-tuned.

docs/training.md says what was found about short runs, and why their settings differ from the papers'.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from openblip.data.transform_config import ImageTransformConfig
from openblip.generation.config import DecodeConfig
from openblip.models.configs import as_language, as_tower
from openblip.objectives.configs import ObjectiveConfig, Stage1Config
from openblip.recipes.blip import ANSWERS, CAPTIONS_BEST, RECALLS_BEST
from openblip.recipes.blip2 import LANGUAGE, VISION
from openblip.tasks.config import DIALOG_TOKENS, FROM_PARTS, QUESTION_TOKENS, AnsweringConfig, RunConfig, as_sources
from openblip.training.config import TrainConfig

__all__ = [
    "SHORT_RUN",
    "SHORT_STAGE1",
    "short_training",
    "small_caption",
    "small_dialog",
    "small_nlvr",
    "small_pretrain",
    "small_retrieval",
    "small_stage1",
    "small_stage2",
    "small_vqa",
]

SHORT_RUN = ObjectiveConfig(queue_size=0, momentum=0.0, alpha=0.0, label_smoothing=0.0, hard_share=0.2)
"""For runs of minutes: in so few steps features change too fast for a queue to hold, momentum copies would be the
model itself a few steps ago, and from hard negatives alone ITM hardly begins to learn (docs/training.md)."""
SHORT_STAGE1 = Stage1Config(label_smoothing=0.0, hard_share=0.2)
"""For runs of minutes: from hard negatives alone ITM hardly begins to learn in so few steps (docs/training.md)."""
_WHOLE = ImageTransformConfig(crop_scale=None, flip=False, ops=())
_MILD = ImageTransformConfig(crop_scale=(0.7, 1.0), flip=False, ops=())


def short_training(
    steps: int, *, optimizer: Literal["adamw", "muon"] = "muon", learning_rate: float = 4e-3
) -> TrainConfig:
    """How a run of minutes is trained: a higher rate, a short warm-up, a cosine in steps, clipped gradients."""
    return TrainConfig(
        max_steps=steps,
        optimizer=optimizer,
        learning_rate=learning_rate,
        warmup_steps=50,
        schedule="cosine",
        betas=(0.9, 0.98),
        weight_decay_on="matrices",
        clip_norm=3.0,
        evaluate_every_epochs=0,
        evaluate_every_steps=max(50, steps // 5),
        checkpoint_every=max(100, steps // 2),
    )


def small_pretrain(
    data: tuple[str, ...],
    *,
    model: str = "micro",
    vision: str = "",
    text: str = "",
    validation: tuple[str, ...] = (),
    steps: int = 1000,
) -> RunConfig:
    """A small BLIP from scratch: ITC, ITM and LM without queue and momentum copies, Muon, mild crops.

    Args:
        model: "nano" or "micro" to train from scratch, "from-parts" for the sizes of `vision` and `text`, or a
            small model's folder.
        vision: Vision Transformer to start the tower from: timm:NAME or hf:NAME.
        text: BERT to start the text side from, a hub name or folder.
    """
    # Muon at the rate of a model from scratch would soon replace what pretrained parts know; AdamW and its rate are
    # those of the paper, which starts from such parts.
    parts = model == FROM_PARTS
    train = short_training(steps, optimizer="adamw", learning_rate=3e-4) if parts else short_training(steps)
    return RunConfig(
        vision_pretrained=vision,
        text_pretrained=text,
        sources=as_sources(data),
        validation=as_sources(validation),
        validation_samples=200,
        model=model,
        transform=_MILD,
        batch_size=64,
        max_length=40,
        max_words=40,
        objective=SHORT_RUN,
        train=train,
        decode=DecodeConfig(num_beams=3, max_new_tokens=32, min_new_tokens=2),
    )


def small_caption(
    data: tuple[str, ...], *, model: str = "micro", validation: tuple[str, ...] = (), steps: int = 500
) -> RunConfig:
    """Captions by LM alone for a small BLIP, from scratch or from a pre-trained one: a higher rate, mild crops.

    Args:
        model: "nano" or "micro" to train from scratch, or a small model's folder.
    """
    config = small_pretrain(data, model=model, validation=validation, steps=steps)
    return _tuned(config, "captioning", CAPTIONS_BEST)


def small_retrieval(
    data: tuple[str, ...], *, model: str = "micro", validation: tuple[str, ...] = (), steps: int = 500
) -> RunConfig:
    """Retrieval by ITC and ITM for a small BLIP, from scratch or from a pre-trained one: a higher rate, mild crops.

    Args:
        model: "nano" or "micro" to train from scratch, or a small model's folder.
    """
    config = small_pretrain(data, model=model, validation=validation, steps=steps)
    return _tuned(config, "retrieval", RECALLS_BEST)


def _tuned(config: RunConfig, task: Literal["captioning", "retrieval"], monitor: str) -> RunConfig:
    train = replace(config.train, monitor=monitor if config.validation else None)
    return replace(config, task=task, train=train)


def small_vqa(
    data: tuple[str, ...], *, model: str = "micro", validation: tuple[str, ...] = (), steps: int = 1000
) -> RunConfig:
    """Questions for a small BLIP, from scratch or from a pre-trained one: a higher rate, whole images, no flips.

    Args:
        model: "nano" or "micro" to train from scratch, or a small model's folder.
    """
    train = short_training(steps)
    return RunConfig(
        task="answering",
        sources=as_sources(data),
        validation=as_sources(validation),
        validation_samples=200,
        model=model,
        transform=_WHOLE,
        max_length=QUESTION_TOKENS,
        answering=AnsweringConfig(label_smoothing=0.0),
        train=replace(train, monitor="accuracy_generated" if validation else None),
        decode=ANSWERS,
    )


def small_dialog(
    data: tuple[str, ...], *, model: str = "micro", validation: tuple[str, ...] = (), steps: int = 1000
) -> RunConfig:
    """Dialogs for a small BLIP, from scratch or from a pre-trained one: a higher rate, whole images, no flips.

    Args:
        model: "nano" or "micro" to train from scratch, which read 64 tokens of a dialog, or a small model's folder.
    """
    train = short_training(steps)
    return RunConfig(
        task="dialog",
        sources=as_sources(data),
        validation=as_sources(validation),
        validation_samples=200,
        model=model,
        transform=_WHOLE,
        batch_size=8,
        max_length=DIALOG_TOKENS,
        answering=AnsweringConfig(label_smoothing=0.0),
        train=replace(train, monitor="mean_reciprocal_rank" if validation else None),
    )


def small_nlvr(
    data: tuple[str, ...], *, model: str = "micro", validation: tuple[str, ...] = (), steps: int = 1000
) -> RunConfig:
    """Statements about two images for a small BLIP, from scratch or from a pre-trained one: whole images, no flips.

    Args:
        model: "nano" or "micro" to train from scratch, or a small model's folder.
    """
    train = short_training(steps)
    return RunConfig(
        task="nlvr",
        sources=as_sources(data),
        validation=as_sources(validation),
        model=model,
        transform=_WHOLE,
        max_length=64,
        train=replace(train, monitor="accuracy" if validation else None),
    )


def small_stage1(
    data: tuple[str, ...],
    *,
    vision: str = VISION,
    text: str = "",
    model: str = "micro",
    validation: tuple[str, ...] = (),
    steps: int = 1000,
) -> RunConfig:
    """BLIP-2's stage 1 with a small Q-Former: ITC, ITM and ITG, few hard negatives, no smoothing, mild crops.

    Args:
        vision: the frozen tower: timm:NAME, hf:NAME or openblip:FOLDER, with @1 read before its last block.
        text: BERT that the Q-Former starts from and takes its sizes from, a hub name or folder.
        model: "nano" or "micro" for a Q-Former from scratch, or a model of stage 1 to start from.
    """
    config = _small_blip2(data, model=model, validation=validation, steps=steps)
    return replace(config, vision=as_tower(vision), text_pretrained=text)


def small_stage2(
    data: tuple[str, ...],
    *,
    model: str,
    language: str = LANGUAGE,
    validation: tuple[str, ...] = (),
    steps: int = 1000,
) -> RunConfig:
    """BLIP-2's stage 2 for a small Q-Former: a frozen language model continues from it.

    Args:
        model: a model of stage 1.
        language: a folder or hub name of transformers: a decoder or an encoder-decoder.
    """
    config = _small_blip2(data, model=model, validation=validation, steps=steps)
    return replace(config, task="captioning", language=as_language(language))


def _small_blip2(data: tuple[str, ...], *, model: str, validation: tuple[str, ...], steps: int) -> RunConfig:
    return RunConfig(
        family="blip2",
        sources=as_sources(data),
        validation=as_sources(validation),
        validation_samples=200,
        model=model,
        transform=_MILD,
        batch_size=64,
        max_length=40,
        max_words=50,
        stage1=SHORT_STAGE1,
        train=short_training(steps, optimizer="adamw", learning_rate=1e-3),
        decode=DecodeConfig(num_beams=3, max_new_tokens=32),
    )
