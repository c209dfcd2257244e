"""The papers' runs as configurations, and those of small data; every number can be set anew.

    config = blip_pretrain(("cc3m/{00000..00331}.tar",), size="base")
    config = override(config, ["train.learning_rate=2e-4", "batch_size=75"])

Numbers are from Li et al. 2022 (arXiv 2201.12086), section 4 and appendix, and its published configurations.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from openblip.core.config import read_table
from openblip.data.sources.base import SourceConfig
from openblip.data.sources.open import parse_spec
from openblip.data.transforms import ImageTransformConfig
from openblip.generation.types import DecodeConfig
from openblip.objectives.pretraining import ObjectiveConfig
from openblip.tasks.answering import MAX_LENGTH
from openblip.tasks.run_config import AnsweringConfig, RunConfig
from openblip.training.config import TrainConfig

__all__ = [
    "SHORT_CAPTIONER",
    "SHORT_FILTER",
    "SHORT_RUN",
    "blip_pretrain",
    "caption_finetune",
    "retrieval_finetune",
    "small_pretrain",
    "small_vqa",
    "vqa_finetune",
]

CAPTION_PROMPT = "a picture of "


def _sources(specs: tuple[str, ...], *, pairs: bool = False) -> tuple[SourceConfig, ...]:
    return tuple(replace(parse_spec(spec), pairs=pairs) for spec in specs)


def blip_pretrain(data: tuple[str, ...], *, size: str = "base", validation: tuple[str, ...] = ()) -> RunConfig:
    """BLIP pre-training with ITC, ITM and LM, 224 px; the paper's global batch is 2,880 (ViT-B) or 2,400 (ViT-L).

    Args:
        data: sources, "PATH?setting=value".
        size: "base" or "large".
    """
    large = size == "large"
    return RunConfig(
        sources=_sources(data),
        validation=_sources(validation),
        model=size,
        vision_pretrained="vit_large_patch16_224.augreg_in21k" if large else "vit_base_patch16_224.augreg_in21k",
        text_pretrained="bert-base-uncased",
        batch_size=75,
        num_workers=4,
        max_length=30,
        objective=ObjectiveConfig(),
        train=TrainConfig(
            epochs=20, learning_rate=2e-4 if large else 3e-4, gradient_checkpointing=large, monitor=None
        ),
    )


def caption_finetune(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune a captioner: LM alone, 384 px, prompt "a picture of ", 5 epochs at 1e-5, global batch 256.

    Small models keep their own resolution.
    """
    return RunConfig(
        sources=_sources(data, pairs=True),
        validation=_sources(validation),
        model=model,
        parts="captioner",
        image_size=None if _is_small(model) else 384,
        transform=ImageTransformConfig(crop_scale=(0.5, 1.0)),
        batch_size=32,
        num_workers=4,
        max_length=40,
        prompt=CAPTION_PROMPT,
        objective=ObjectiveConfig(objectives=("lm",)),
        train=TrainConfig(
            epochs=5,
            learning_rate=1e-5,
            min_learning_rate=0.0,
            warmup_steps=0,
            schedule="cosine-epoch",
            monitor="CIDEr" if validation else None,
        ),
        decode=DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=20),
    )


def retrieval_finetune(
    data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = (), large: bool = False
) -> RunConfig:
    """Fine-tune for retrieval: ITC, ITM, image ids, 384 px, 6 epochs at 1e-5 (ViT-L 5e-6), global batch 256.

    Small models keep their own resolution.
    """
    return RunConfig(
        sources=_sources(data, pairs=True),
        validation=_sources(validation),
        model=model,
        parts="matcher",
        image_size=None if _is_small(model) else 384,
        transform=ImageTransformConfig(crop_scale=(0.5, 1.0)),
        batch_size=32,
        num_workers=4,
        max_length=35,
        objective=ObjectiveConfig(objectives=("itc", "itm"), use_image_ids=True),
        train=TrainConfig(
            epochs=6,
            learning_rate=5e-6 if large else 1e-5,
            min_learning_rate=0.0,
            warmup_steps=0,
            schedule="cosine-epoch",
            monitor="t2i_recall_itm@1" if validation else None,
        ),
        rerank_k=128,
    )


def vqa_finetune(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune to answer questions: 480 px, 10 epochs at 2e-5, global batch 256 questions, answers weighted.

    A batch holds pictures, each with all its questions; "PATH?pairs=true" makes every question a sample of its
    own, as in the paper. Small models get the settings of `small_vqa`.
    """
    if _is_small(model):
        return small_vqa(data, model=model, validation=validation)
    return RunConfig(
        task="vqa",
        sources=_questions(data),
        validation=_questions(validation),
        model=model,
        image_size=480,
        transform=ImageTransformConfig(crop_scale=(0.5, 1.0)),
        batch_size=16,
        num_workers=4,
        max_length=MAX_LENGTH,
        train=TrainConfig(
            epochs=10,
            learning_rate=2e-5,
            min_learning_rate=0.0,
            warmup_steps=0,
            schedule="cosine-epoch",
            monitor="accuracy_generated" if validation else None,
        ),
        decode=ANSWERS,
    )


def small_vqa(
    data: tuple[str, ...], *, model: str = "micro", validation: tuple[str, ...] = (), steps: int = 1000
) -> RunConfig:
    """Questions for a small model, afresh or from a pre-trained one: a higher rate, whole pictures, no flips.

    Args:
        model: "nano" or "micro" to start afresh, or a small model's folder.
    """
    return RunConfig(
        task="vqa",
        sources=_questions(data),
        validation=_questions(validation),
        validation_samples=200,
        model=model,
        transform=ImageTransformConfig(crop_scale=None, flip=False, ops=()),
        batch_size=32,
        num_workers=1,
        max_length=MAX_LENGTH,
        answering=AnsweringConfig(label_smoothing=0.0),
        train=TrainConfig(
            max_steps=steps,
            optimizer="muon",
            learning_rate=4e-3,
            warmup_steps=50,
            schedule="cosine",
            betas=(0.9, 0.98),
            weight_decay_on="matrices",
            clip_norm=3.0,
            evaluate_every_epochs=0,
            evaluate_every_steps=max(50, steps // 5),
            checkpoint_every=max(100, steps // 2),
            monitor="accuracy_generated" if validation else None,
        ),
        decode=ANSWERS,
    )


ANSWERS = DecodeConfig(num_beams=3, max_new_tokens=9)
"""how answers are written, as the reference does"""
_FEW_PIXELS = 128


def _questions(specs: tuple[str, ...]) -> tuple[SourceConfig, ...]:
    return tuple(parse_spec(spec) for spec in specs)


def _is_small(model: str) -> bool:
    """Whether it is of a small size, or a folder with a model of few pixels."""
    file = Path(model) / "config.json"
    if model in ("nano", "micro") or not file.is_file():
        return model in ("nano", "micro")
    described = read_table(file)  # of ours, or of transformers
    vision = described.get("model", {}).get("vision") or described.get("vision_config") or {}
    pixels = vision.get("image_size")
    sides = pixels if isinstance(pixels, list) else [pixels]
    return all(isinstance(side, int) and side <= _FEW_PIXELS for side in sides)


SHORT_RUN = ObjectiveConfig(queue_size=0, momentum=0.0, alpha=0.0, label_smoothing=0.0, hard_share=0.2)
"""for runs of minutes: in so few steps features change too fast for a queue to hold, momentum copies would be the
model itself a few steps ago, and from hard negatives alone ITM hardly begins to learn (docs/training.md)"""
SHORT_CAPTIONER = replace(SHORT_RUN, objectives=("lm",))
SHORT_FILTER = replace(SHORT_RUN, objectives=("itc", "itm"))
"""most negatives are drawn evenly: a filter is to tell apart texts of any other image, not the most similar"""


def small_pretrain(
    data: tuple[str, ...], *, size: str = "micro", validation: tuple[str, ...] = (), steps: int = 1000
) -> RunConfig:
    """A small model from scratch on a laptop: no queue, quick momentum, Muon, mild crops."""
    return RunConfig(
        sources=_sources(data),
        validation=_sources(validation),
        validation_samples=200,
        model=size,
        transform=ImageTransformConfig(crop_scale=(0.7, 1.0), flip=False, ops=()),
        batch_size=64,
        num_workers=1,
        max_length=40,
        max_words=40,
        objective=SHORT_RUN,
        train=TrainConfig(
            max_steps=steps,
            optimizer="muon",
            learning_rate=4e-3,
            warmup_steps=50,
            schedule="cosine",
            betas=(0.9, 0.98),
            weight_decay_on="matrices",
            clip_norm=3.0,
            evaluate_every_epochs=0,
            evaluate_every_steps=max(50, steps // 5),
            checkpoint_every=max(100, steps // 2),
        ),
        decode=DecodeConfig(num_beams=3, max_new_tokens=32, min_new_tokens=2),
    )
