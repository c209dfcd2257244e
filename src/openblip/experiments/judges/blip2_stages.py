"""BLIP-2 in the scene world: runs of either stage over cached features, and what they give on unseen images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from openblip.checkpoints.blip2_parts import open_tower
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.documents import documents
from openblip.data.world.scene import Scene
from openblip.data.world.truth import caption_report
from openblip.experiments.judges.small_language import LanguageSizes
from openblip.experiments.judges.text_only import TextRunConfig, small_train, train_language
from openblip.experiments.judges.zero_shot import accuracy, answers, ask_about
from openblip.experiments.presets import LEARNING_RATE, SCENE_VOCABULARY, WHOLE_IMAGE
from openblip.generation.config import DecodeConfig
from openblip.generation.language import decode_after
from openblip.models.configs import QFormerSettings, as_language, as_tower
from openblip.recipes.blip2 import VISION
from openblip.recipes.small import small_stage1
from openblip.tasks.config import QUESTION_PROMPTS, RunConfig
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.families.blip2 import Blip2Adapter
from openblip.tasks.features import cache_features
from openblip.tasks.training import evaluate_model
from openblip.training.loop import TrainResult

__all__ = [
    "GREEDY",
    "LANGUAGES",
    "QFORMER",
    "Seen",
    "look",
    "measure_stage1",
    "measure_stage2",
    "query_likeness",
    "train_world_language",
    "world_features",
    "world_run",
]

QFORMER = QFormerSettings(
    num_queries=16, width=96, depth=4, num_heads=3, inner_width=384, max_positions=64, dropout=0.0
)
LANGUAGES: dict[str, LanguageSizes] = {
    "decoder": LanguageSizes(kind="llama", width=96, num_heads=3),
    "encoder-decoder": LanguageSizes(kind="t5", width=96, depth=3, num_heads=3),
}
GREEDY = DecodeConfig(max_new_tokens=40)
"""how captions are written to be judged"""
_RECALLS = ("t2i_recall@1", "i2t_recall@1", "t2i_recall_itm@1", "i2t_recall_itm@1", "t2i_recall@5")


def train_world_language(
    name: str, out: Path, *, count: int, steps: int, batch_size: int = 64, seed: int = 0, show: bool = True,
    seconds: float | None = None,
) -> TrainResult:  # fmt: skip
    """Train one of `LANGUAGES` on `count` documents into `out`/model; what is trained already is left alone.

    No image has anything to do with it: the documents are about scenes of their own.

    Args:
        seconds: that all of this is to take, with as many steps as fit.
    """
    began, sizes = time.perf_counter(), LANGUAGES[name]
    reads = sizes.kind == "t5"
    asked = QUESTION_PROMPTS[reads]
    told = [
        [(asked.replace("{}", line.question) if line.question else "", line.text) for line in lines]
        for lines in documents(count, seed=1000 + seed)
    ]
    # A decoder's rows are whole documents, an encoder-decoder's single lines with what stands before them.
    if seconds is not None:
        seconds -= time.perf_counter() - began
    config = TextRunConfig(
        language=sizes,
        batch_size=batch_size if reads else max(1, batch_size // 2),
        train=small_train(steps, seed=seed, seconds=seconds),
    )
    return train_language(told, config, out, resume=True, title=f"{name}, text alone", show=show)


def world_features(source: SourceConfig, tower: str, out: Path) -> Path:
    """Cache the features of a tower ("openblip:FOLDER") for all images of `source`; returns the folder."""
    cache_features([open_source(source)], open_tower(as_tower(tower)), out, batch_size=128)
    return out


def world_run(
    stage: Literal["stage1", "stage2"],
    source: SourceConfig,
    *,
    features: Path,
    steps: int,
    tower: str = "",
    model: str = "",
    language: str = "",
    qformer: QFormerSettings = QFORMER,
    batch_size: int = 64,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    seconds: float | None = None,
) -> RunConfig:
    """A run over cached features; a model of stage 1 that is continued from brings its own tower and Q-Former.

    Args:
        seconds: that training is to take, with as many steps as fit.
    """
    base = small_stage1((source.path,), vision=tower or VISION, model=model or "nano", steps=steps)
    return replace(
        base,
        task="pretraining" if stage == "stage1" else "captioning",
        sources=(source,),
        features=(str(features),),
        qformer=qformer,
        embed_dim=64,
        language=as_language(language) if language else base.language,
        transform=WHOLE_IMAGE,
        vocab_size=SCENE_VOCABULARY,
        batch_size=batch_size,
        num_workers=0,  # there is nothing to decode
        max_length=48,
        max_words=48,
        train=small_train(steps, warmup_steps=30, learning_rate=learning_rate, seed=seed, seconds=seconds),
    )


@dataclass(frozen=True)
class Seen:
    """Images as a model of stage 2 hands them to its language model."""

    soft: Tensor
    """[images, Q, L]"""
    scenes: Sequence[Scene]
    captions: Sequence[str]
    """a true one of each"""
    keys: Sequence[str]


@torch.no_grad()
def look(stored: Blip2Adapter, source: SourceConfig, samples: int) -> Seen:
    """Read the first images of `source`."""
    model = stored.model.eval()
    soft, scenes, captions, keys = [], [], [], []
    for batch in evaluation_batches((source,), model.vision.pixels, samples=samples, batch_size=100, clean="none"):
        soft.append(model.soft_prompt(model.remember(model.encode_pixels(batch.images))).float())
        scenes += [scene_from_meta(meta) for meta in batch.meta]
        own = dict(zip(batch.image_index.tolist(), batch.texts, strict=True))
        captions += [own[row] for row in range(len(batch.keys))]
        keys += batch.keys
    return Seen(torch.cat(soft), scenes, captions, keys)


@torch.no_grad()
def query_likeness(stored: Blip2Adapter, source: SourceConfig, samples: int) -> float:
    """Mean cosine of two queries' outputs for one image: 1 when all of them say the same."""
    model, found = stored.model.eval(), []
    for batch in evaluation_batches((source,), model.vision.pixels, samples=samples, batch_size=100, clean="none"):
        memory = model.remember(model.encode_pixels(batch.images))
        found.append(_mean_cosine(model.read_image(memory).float()))
    return float(torch.cat(found).mean())


def _mean_cosine(queries: Tensor) -> Tensor:
    """Of two different rows of each [Q, D] in [B, Q, D]: [B]."""
    count = queries.shape[1]
    whole = torch.nn.functional.normalize(queries, dim=-1).sum(1).square().sum(-1)
    return (whole - count) / (count * (count - 1))


def measure_stage1(stored: Blip2Adapter, run: RunConfig, source: SourceConfig, samples: int) -> dict[str, float]:
    """Recall by ITC and after ITM, ITM's accuracy, ITG's perplexity."""
    config = replace(run, validation=(source,), validation_samples=samples)
    found, _ = evaluate_model(config, stored)
    kept = (*_RECALLS, "itm_accuracy", "itm_auc", "itg_perplexity")
    return {name: found[name] for name in kept if name in found}


def measure_stage2(
    stored: Blip2Adapter, source: SourceConfig, samples: int, *, novel: bool = False
) -> dict[str, float]:
    """How true its captions are, and zero-shot answers by kind of question."""
    seen = look(stored, source, samples)
    language_tokenizer = stored.language_tokenizer
    assert language_tokenizer is not None
    llm = stored.model.llm
    written = decode_after(llm, language_tokenizer, seen.soft, GREEDY, prompts=[""] * len(seen.soft))
    report = caption_report([language_tokenizer.decode(ids) for _, ids, _, _ in written.texts()], seen.scenes)
    asked = ask_about(seen.scenes, novel=novel)
    right = accuracy(asked, answers(llm, language_tokenizer, asked, soft=seen.soft))
    kept = ("truth", "fact_accuracy", "coverage", "mean_facts", "chance")
    return {name: float(report[name]) for name in kept} | {
        f"answers_{kind}": share for kind, share in right.items()
    }
