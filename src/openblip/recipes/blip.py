"""BLIP's runs as configurations.

Values are from Li et al. 2022 (arXiv 2201.12086), section 4 and table 14, and, what the paper leaves open, from its
published configurations and programs (salesforce/BLIP). tests/unit/test_recipes_of_papers.py compares them.

    config = blip_pretrain(("cc3m/{00000..00331}.tar",), model="base")
    config = override(config, ["train.learning_rate=2e-4", "batch_size=75"])
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from openblip.core.config import read_table
from openblip.data.source_config import SourceConfig
from openblip.data.transform_config import ImageTransformConfig
from openblip.generation.config import DecodeConfig
from openblip.objectives.configs import ObjectiveConfig
from openblip.tasks.config import DIALOG_TOKENS, QUESTION_TOKENS, RunConfig, TaskName, as_sources
from openblip.training.config import TrainConfig

__all__ = [
    "ANSWERS",
    "CAPTIONS_BEST",
    "RECALLS_BEST",
    "blip_pretrain",
    "caption_finetune",
    "dialog_finetune",
    "is_small",
    "nlvr_finetune",
    "retrieval_finetune",
    "vqa_finetune",
]

CAPTION_PROMPT = "a picture of "
_TOWERS = {
    "base": "timm:deit_base_patch16_224.fb_in1k",
    "large": "timm:vit_large_patch16_224.augreg_in21k",
}
"""what the paper's vision towers start from"""


def one_text_each(specs: tuple[str, ...]) -> tuple[SourceConfig, ...]:
    """Sources whose samples are taken apart, one for each text, as the papers fine-tune."""
    return tuple(replace(source, pairs=True) for source in as_sources(specs))


def blip_pretrain(
    data: tuple[str, ...],
    *,
    model: str = "base",
    vision: str = "",
    text: str = "",
    validation: tuple[str, ...] = (),
) -> RunConfig:
    """BLIP pre-training with ITC, ITM and LM, 224 px; the paper's global batch is 2,880 (ViT-B) or 2,400 (ViT-L).

    The rate falls by 0.85 at each epoch, as in the paper; the published configuration has 0.9.

    Args:
        data: sources, "PATH?setting=value".
        model: "base" or "large" to train from scratch, over pretrained towers; "from-parts" for the sizes of
            `vision` and `text`; or a model to start from.
        vision: Vision Transformer to start the tower from: timm:NAME or hf:NAME.
        text: BERT to start the text side from, a hub name or folder.
    """
    large, scratch = model == "large", model in ("base", "large")
    return RunConfig(
        sources=as_sources(data),
        validation=as_sources(validation),
        model=model,
        vision_pretrained=vision or _TOWERS.get(model, ""),
        text_pretrained=text or ("bert-base-uncased" if scratch else ""),
        batch_size=75,
        num_workers=4,
        max_length=30,
        objective=ObjectiveConfig(alpha_ramp_epochs=2.0),
        train=TrainConfig(
            epochs=20,
            learning_rate=2e-4 if large else 3e-4,
            decay_rate=0.85,
            gradient_checkpointing=float(large),
            monitor=None,
        ),
    )


def _finetune(
    task: TaskName,
    sources: tuple[SourceConfig, ...],
    model: str,
    validation: tuple[str, ...],
    *,
    pixels: int,
    epochs: int,
    learning_rate: float,
    monitor: str,
    **more: Any,
) -> RunConfig:
    """What the fine-tunings share: crops of at least half the area, no warm-up, a cosine in whole epochs.

    Args:
        pixels: of the images; small models keep their own resolution.
        monitor: metric that decides which model is the best, where there is data to evaluate on.
    """
    return RunConfig(
        task=task,
        sources=sources,
        validation=as_sources(validation),
        model=model,
        image_size=None if is_small(model) else pixels,
        transform=ImageTransformConfig(crop_scale=(0.5, 1.0)),
        num_workers=4,
        train=TrainConfig(
            epochs=epochs,
            learning_rate=learning_rate,
            min_learning_rate=0.0,
            warmup_steps=0,
            schedule="cosine-epoch",
            monitor=monitor if validation else None,
        ),
        **more,
    )


def caption_finetune(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune a captioner: LM alone, 384 px, prompt "a picture of ", 5 epochs at 1e-5, global batch 256.

    The best model is that of the highest CIDEr + BLEU-4. Small models keep their own resolution; for a trained
    ViT-L set train.learning_rate=2e-6.
    """
    return _finetune(
        "captioning",
        one_text_each(data),
        model,
        validation,
        pixels=384,
        epochs=5,
        learning_rate=1e-5,
        monitor=CAPTIONS_BEST,
        batch_size=32,
        max_length=40,
        prompt=CAPTION_PROMPT,
        objective=ObjectiveConfig(objectives=("lm",)),
        # The reference's lengths of 5 and 20 count the first token and the three of the prompt.
        decode=DecodeConfig(num_beams=3, min_new_tokens=1, max_new_tokens=16),
    )


def retrieval_finetune(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune for retrieval: ITC, ITM, image ids, 384 px, 6 epochs at 1e-5, global batch 256.

    The best model is that of the highest mean of the six recalls, both directions at 1, 5 and 10. Small models keep
    their own resolution; for a trained ViT-L set train.learning_rate=5e-6.
    """
    return _finetune(
        "retrieval",
        one_text_each(data),
        model,
        validation,
        pixels=384,
        epochs=6,
        learning_rate=5e-6 if model == "large" else 1e-5,
        monitor=RECALLS_BEST,
        batch_size=32,
        max_length=35,
        objective=ObjectiveConfig(
            objectives=("itc", "itm"), use_image_ids=True, negatives="all", negative_floor=0.0
        ),
        rerank_k=128,
    )


def vqa_finetune(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune to answer questions: 480 px, 10 epochs at 2e-5, global batch 256 questions, answers weighted.

    A batch holds images, each with all its questions; "PATH?pairs=true" makes every question a sample of its
    own, as in the paper. `small_vqa` has the settings of small models, which keep their own resolution here too.
    """
    return _finetune(
        "answering",
        as_sources(data),
        model,
        validation,
        pixels=480,
        epochs=10,
        learning_rate=2e-5,
        monitor="accuracy_generated",
        batch_size=16,
        max_length=QUESTION_TOKENS,
        decode=ANSWERS,
    )


def nlvr_finetune(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune to judge statements about two images (NLVR2): 384 px, 15 epochs at 3e-5, global batch 256.

    The images of a pair are exchanged at random together with the words "left" and "right" of its statements. As in
    the reference each image is also cropped, flipped and changed by RandAugment; small models keep their own
    resolution here, and `small_nlvr` has their settings.
    """
    return _finetune(
        "nlvr",
        as_sources(data),
        model,
        validation,
        pixels=384,
        epochs=15,
        learning_rate=3e-5,
        monitor="accuracy",
        validation_samples=10_000,
        batch_size=16,
        max_length=64,
    )


def dialog_finetune(data: tuple[str, ...], *, model: str, validation: tuple[str, ...] = ()) -> RunConfig:
    """Fine-tune for dialogs (VisDial): 384 px, 20 epochs at 2e-5, all rounds of 16 dialogs in a batch.

    The paper tells size, epochs and rate; what it leaves open stands in docs/dialog.md. Small models keep their own
    resolution here, and `small_dialog` has their settings.
    """
    return _finetune(
        "dialog",
        as_sources(data),
        model,
        validation,
        pixels=384,
        epochs=20,
        learning_rate=2e-5,
        monitor="mean_reciprocal_rank",
        batch_size=16,
        max_length=DIALOG_TOKENS,
    )


CAPTIONS_BEST = "CIDEr+BLEU-4"
"""the metric by which the references choose a captioner's best epoch"""
RECALLS_BEST = "mean_recall_itm"
"""of a retrieval model: the mean of the six recalls, re-ranked"""
ANSWERS = DecodeConfig(num_beams=3, max_new_tokens=9)
"""how answers are generated, as the reference does"""
_FEW_PIXELS = 128


def is_small(model: str) -> bool:
    """Whether a model is of a small size, or a folder with one of few pixels."""
    file = Path(model) / "config.json"
    if model in ("nano", "micro") or not file.is_file():
        return model in ("nano", "micro")
    described = read_table(file)  # of ours, or of transformers
    vision = described.get("model", {}).get("vision") or described.get("vision_config") or {}
    pixels = vision.get("image_size")
    sides = pixels if isinstance(pixels, list) else [pixels]
    return all(isinstance(side, int) and side <= _FEW_PIXELS for side in sides)
