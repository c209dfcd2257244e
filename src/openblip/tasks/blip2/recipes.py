"""The paper's BLIP-2 runs as configurations, and those of small data; every number can be set anew.

Numbers are from Li et al. 2023 (arXiv 2301.12597), sections 3 and 4 and appendix, and its published configurations.
"""

from __future__ import annotations

from dataclasses import replace

from openblip.checkpoints.blip2_parts import as_language, as_tower
from openblip.data.sources.base import SourceConfig
from openblip.data.sources.open import parse_spec
from openblip.data.transforms import ImageTransformConfig
from openblip.generation.types import DecodeConfig
from openblip.models.language import LanguageConfig
from openblip.objectives.blip2 import Stage1Config
from openblip.tasks.blip2.config import QFORMERS, Blip2RunConfig
from openblip.training.config import TrainConfig

__all__ = ["PROMPT", "QUESTION", "SHORT_STAGE1", "blip2_finetune", "blip2_stage1", "blip2_stage2", "small_blip2"]

VISION = "timm:eva_giant_patch14_clip_224"
LANGUAGE = "facebook/opt-2.7b"
PROMPT = "a photo of"
QUESTION = "Question: {} Short answer:"


def _sources(specs: tuple[str, ...], *, pairs: bool = False) -> tuple[SourceConfig, ...]:
    return tuple(replace(parse_spec(spec), pairs=pairs) for spec in specs)


_PRETRAIN = TrainConfig(
    learning_rate=1e-4,
    min_learning_rate=1e-5,
    warmup_steps=2000,
    warmup_learning_rate=1e-6,
    schedule="cosine",
    betas=(0.9, 0.98),
    weight_decay_on="matrices",
    evaluate_every_epochs=0,
    evaluate_every_steps=10_000,
)


def blip2_stage1(
    data: tuple[str, ...], *, vision: str = VISION, validation: tuple[str, ...] = (), model: str = ""
) -> Blip2RunConfig:
    """Stage 1: ITC, ITM and ITG over a frozen tower, 250,000 steps, global batch 2,320 (ViT-L) or 1,680 (ViT-g)."""
    return Blip2RunConfig(
        stage="stage1",
        sources=_sources(data),
        validation=_sources(validation),
        model=model,
        vision=replace(as_tower(vision), dtype="auto"),
        text_pretrained="" if model else "bert-base-uncased",
        batch_size=105,
        num_workers=4,
        train=replace(_PRETRAIN, max_steps=250_000),
    )


def blip2_stage2(
    data: tuple[str, ...], *, model: str, language: str = LANGUAGE, validation: tuple[str, ...] = ()
) -> Blip2RunConfig:
    """Stage 2: language modelling before a frozen language model, 80,000 steps, global batch 1,920 (T5: 1,520)."""
    return Blip2RunConfig(
        stage="stage2",
        sources=_sources(data),
        validation=_sources(validation),
        model=model,
        language=replace(as_language(language), dtype="auto", end="\n" if "opt" in language.lower() else ""),
        batch_size=120,
        num_workers=4,
        train=replace(_PRETRAIN, max_steps=80_000, min_learning_rate=5e-5),
    )


def blip2_finetune(
    task: str, data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()
) -> Blip2RunConfig:
    """Fine-tune for "caption" (prompt "a photo of"), "vqa" (the question in the Q-Former too) or "retrieval".

    The paper unfreezes the tower, with a rate that falls by layer (0.95 for ViT-g captions, 0.9 for VQA).
    """
    common = Blip2RunConfig(
        sources=_sources(data, pairs=True),
        validation=_sources(validation),
        model=model,
        unfreeze_vision=True,
        batch_size=16,
        num_workers=4,
        train=replace(
            _PRETRAIN,
            epochs=5,
            learning_rate=1e-5,
            min_learning_rate=0.0,
            warmup_steps=1000,
            warmup_learning_rate=1e-8,
            layer_decay=0.95,
            evaluate_every_epochs=1,
            evaluate_every_steps=0,
            gradient_checkpointing=True,
        ),
    )
    if task == "caption":
        decode = DecodeConfig(num_beams=5, min_new_tokens=8, max_new_tokens=30)
        monitor = "CIDEr" if validation else None
        train = replace(common.train, monitor=monitor)
        return replace(common, stage="stage2", prompt=PROMPT, decode=decode, train=train)
    if task == "vqa":
        decode = DecodeConfig(num_beams=5, max_new_tokens=10, length_penalty=0.0)
        monitor = "vqa_accuracy" if validation else None
        train = replace(common.train, layer_decay=0.9, monitor=monitor)
        return replace(
            common, stage="stage2", task="questions", prompt=QUESTION, max_length=48, decode=decode, train=train
        )
    monitor = "t2i_recall_itm@1" if validation else None
    return replace(
        common,
        stage="stage1",
        objective=Stage1Config(use_image_ids=True),
        rerank_k=128,
        train=replace(common.train, monitor=monitor),
    )


SHORT_STAGE1 = Stage1Config(label_smoothing=0.0, hard_share=0.2)
"""for runs of minutes: from hard negatives alone ITM hardly begins to learn in so few steps (docs/training.md)"""


def small_blip2(
    data: tuple[str, ...],
    *,
    stage: str = "stage1",
    size: str = "micro",
    vision: str = "",
    model: str = "",
    language: str = "",
    validation: tuple[str, ...] = (),
    steps: int = 1000,
) -> Blip2RunConfig:
    """Either stage on a laptop: small Q-Former, higher rate, mild crops, few hard negatives, no smoothing."""
    return Blip2RunConfig(
        stage="stage2" if stage == "stage2" else "stage1",
        sources=_sources(data),
        validation=_sources(validation),
        validation_samples=200,
        model=model,
        vision=as_tower(vision or VISION),
        qformer=QFORMERS[size],
        language=as_language(language) if language else LanguageConfig(),
        transform=ImageTransformConfig(crop_scale=(0.7, 1.0), flip=False, ops=()),
        batch_size=64,
        max_length=40,
        objective=SHORT_STAGE1,
        train=TrainConfig(
            max_steps=steps,
            learning_rate=1e-3,
            warmup_steps=50,
            schedule="cosine",
            betas=(0.9, 0.98),
            weight_decay_on="matrices",
            clip_norm=3.0,
            evaluate_every_epochs=0,
            evaluate_every_steps=max(50, steps // 5),
            checkpoint_every=max(100, steps // 2),
        ),
        decode=DecodeConfig(num_beams=3, max_new_tokens=32),
    )
