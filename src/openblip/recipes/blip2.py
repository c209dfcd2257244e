"""BLIP-2's runs as configurations.

Values are from Li et al. 2023 (arXiv 2301.12597), sections 3 and 4 and tables 7 to 9, and, what the paper leaves
open, from its published configurations and programs (salesforce/LAVIS). Where these differ the paper counts, as its
authors say (salesforce/LAVIS#243). tests/unit/test_recipes_of_papers.py compares them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openblip.data.transform_config import ImageTransformConfig
from openblip.generation.config import DecodeConfig
from openblip.models.configs import LanguageConfig, TowerConfig, as_language, as_tower
from openblip.objectives.configs import Stage1Config
from openblip.recipes.blip import CAPTIONS_BEST, one_text_each
from openblip.tasks.config import CAPTION_PROMPT, QUESTION_PROMPTS, RunConfig, TaskName, as_sources
from openblip.training.config import TrainConfig

__all__ = [
    "LANGUAGE",
    "LANGUAGE_TODAY",
    "VISION",
    "VISION_TODAY",
    "blip2_caption",
    "blip2_retrieval",
    "blip2_stage1",
    "blip2_stage2",
    "blip2_today_stage1",
    "blip2_today_stage2",
    "blip2_vqa",
]

VISION = "timm:eva_giant_patch14_clip_224"
LANGUAGE = "facebook/opt-2.7b"
VISION_TODAY = "timm:vit_so400m_patch14_siglip_gap_224.v2_webli"
"""SigLIP 2 (Apache 2.0); DINOv3, timm:vit_large_patch16_dinov3.lvd1689m, has its own licence"""
LANGUAGE_TODAY = "Qwen/Qwen3-1.7B-Base"
"""Qwen 3 (Apache 2.0); Gemma 3, google/gemma-3-1b-pt, has its own licence"""


_CROPS = ImageTransformConfig(crop_scale=(0.5, 1.0), ops=())
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
    data: tuple[str, ...],
    *,
    vision: str = VISION,
    text: str = "",
    validation: tuple[str, ...] = (),
    model: str = "",
) -> RunConfig:
    """Stage 1: ITC, ITM and ITG over a frozen tower, 250,000 steps, global batch 2,320 (ViT-L) or 1,680 (ViT-g).

    Args:
        text: BERT that the Q-Former starts from and takes its sizes from, a hub name or folder.
    """
    return RunConfig(
        family="blip2",
        task="pretraining",
        sources=as_sources(data),
        validation=as_sources(validation),
        model=model,
        vision=replace(as_tower(vision), dtype="auto"),
        text_pretrained=text or ("bert-base-uncased" if model in ("", "base") else ""),
        transform=_CROPS,
        batch_size=105,
        num_workers=4,
        max_length=32,
        max_words=50,
        train=replace(_PRETRAIN, max_steps=250_000),
    )


def blip2_stage2(
    data: tuple[str, ...], *, model: str, language: str = LANGUAGE, validation: tuple[str, ...] = ()
) -> RunConfig:
    """Stage 2: language modelling before a frozen language model, 80,000 steps, global batch 1,920 (T5: 1,520)."""
    return RunConfig(
        family="blip2",
        task="captioning",
        sources=as_sources(data),
        validation=as_sources(validation),
        model=model,
        language=replace(as_language(language), dtype="auto", end="\n" if "opt" in language.lower() else ""),
        transform=_CROPS,
        batch_size=120,
        num_workers=4,
        max_length=32,
        max_words=50,
        decode=DecodeConfig(num_beams=5, max_new_tokens=30),
        train=replace(_PRETRAIN, max_steps=80_000, min_learning_rate=5e-5),
    )


def blip2_today_stage1(
    data: tuple[str, ...],
    *,
    vision: str = VISION_TODAY,
    text: str = "",
    validation: tuple[str, ...] = (),
    model: str = "",
) -> RunConfig:
    """Stage 1 over SigLIP 2 for a few million pairs: 10 passes, global batch 1,024 on 8 processes.

    Args:
        text: as for `blip2_stage1`.
    """
    made = blip2_stage1(data, vision=vision, text=text, validation=validation, model=model)
    return replace(made, batch_size=128, train=replace(made.train, max_steps=None, epochs=10))


def blip2_today_stage2(
    data: tuple[str, ...], *, model: str, language: str = LANGUAGE_TODAY, validation: tuple[str, ...] = ()
) -> RunConfig:
    """Stage 2 before Qwen 3 for a few million pairs: 10 passes, global batch 1,024 on 8 processes."""
    made = blip2_stage2(data, model=model, language=language, validation=validation)
    return replace(made, batch_size=128, train=replace(made.train, max_steps=None, epochs=10))


def _finetune(
    task: TaskName,
    data: tuple[str, ...],
    model: str,
    validation: tuple[str, ...],
    monitor: str,
    *,
    image_size: int = 364,
    layer_decay: float,
    max_length: int = 32,
    **more: Any,
) -> RunConfig:
    """What the fine-tunings share: the tower is trained too, at more pixels, and the cosine falls in whole epochs.

    Args:
        layer_decay: of the tower's rate, from block to block.
        monitor: metric that decides which model is the best, where there is data to evaluate on.
    """
    return RunConfig(
        family="blip2",
        task=task,
        sources=one_text_each(data),
        validation=as_sources(validation),
        model=model,
        vision=TowerConfig(image_size=image_size),
        unfreeze_vision=True,
        transform=_CROPS,
        batch_size=16,
        num_workers=4,
        max_length=max_length,
        max_words=50,
        train=replace(
            _PRETRAIN,
            epochs=5,
            learning_rate=1e-5,
            min_learning_rate=0.0,
            warmup_steps=1000,
            warmup_learning_rate=1e-8,
            schedule="cosine-epoch",
            betas=(0.9, 0.999),
            layer_decay=layer_decay,
            evaluate_every_epochs=1,
            evaluate_every_steps=0,
            gradient_checkpointing=1.0,
            monitor=monitor if validation else None,
        ),
        **({"language": LanguageConfig(dtype="auto")} | more),
    )


def blip2_caption(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune a model of stage 2 for captions at 364 px: prompt "a photo of", the tower trained too, 5 epochs.

    One rate for all layers, as in the paper for FlanT5-XL and OPT-2.7B; OPT-6.7B has train.layer_decay=0.95.
    Captions have at least 8 tokens, what they begin from included: OPT's prompt is four of them, FlanT5's one
    (decode.min_new_tokens=7).
    """
    decode = DecodeConfig(num_beams=5, min_new_tokens=4, max_new_tokens=30)
    return _finetune(
        "captioning", data, model, validation, CAPTIONS_BEST, layer_decay=1.0, prompt=CAPTION_PROMPT, decode=decode
    )


def blip2_vqa(
    data: tuple[str, ...], *, model: str, language: str = "", validation: tuple[str, ...] = ()
) -> RunConfig:
    """Fine-tune for questions at 490 px, which the Q-Former reads too: the tower trained too, 5 epochs at 1e-5.

    train.layer_decay is 0.95 as in the paper for FlanT5-XL and OPT-2.7B; OPT-6.7B has 0.9. Length penalty as LAVIS
    has it for decoders; of encoder-decoders it is -1 (decode.length_penalty).

    Args:
        language: the language model behind a model of stage 1; one of stage 2 has its own.
    """
    more: dict[str, Any] = {"language": replace(as_language(language), dtype="auto")} if language else {}
    return _finetune(
        "answering",
        data,
        model,
        validation,
        "accuracy_generated",
        image_size=490,
        layer_decay=0.95,
        max_length=48,
        prompt=QUESTION_PROMPTS[False],
        decode=DecodeConfig(num_beams=5, max_new_tokens=10, length_penalty=0.0),
        **more,
    )


def blip2_retrieval(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune a model of stage 1 for retrieval at 364 px: image ids, re-ranking of 128, the tower trained too.

    The best model is that of the highest mean recall of texts at 1, 5 and 10, as LAVIS chooses it. A ViT-L has
    train.learning_rate=5e-6 and train.betas=[0.9,0.98] in the paper.
    """
    stage1 = Stage1Config(use_image_ids=True, negative_floor=0.0)
    return _finetune(
        "retrieval",
        data,
        model,
        validation,
        "i2t_mean_recall_itm",
        layer_decay=0.95,
        stage1=stage1,
        rerank_k=128,
    )
