"""openstax: BLIP from scratch on 1,204 textbook figures, measured on 355 of other books around each stage.

    before      random weights
    pretrain    ITC + ITM + LM on the alt texts (and, with `web_share`, on the books' own captions)
    captioner   LM alone on the alt texts, from the pre-trained model
    retrieval   ITC + ITM on the alt texts, from the pre-trained model

Each stage keeps the weights that were best on `val`, whose books are others again; `test` is measured with those
weights and decides nothing. A finished stage is not run again, one that was stopped resumes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.config import keep_settings
from openblip.core.runtime import seed_everything
from openblip.core.tokenizer import TextTokenizer
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.data.transform_config import COLOR_KEEPING_OPS, ImageTransformConfig
from openblip.data.transforms import evaluation_transform
from openblip.experiments.presets import short_train
from openblip.experiments.real.measures import Unseen, caption_metrics, likelihood_metrics, matching_metrics
from openblip.experiments.stages import once
from openblip.models.blip import Blip, blip_config
from openblip.objectives.configs import ObjectiveConfig
from openblip.tasks.config import RunConfig
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.protocols import Adapter
from openblip.tasks.registry import adapt
from openblip.tasks.training import run_training
from openblip.tasks.vocabulary import training_texts

__all__ = ["QUICK", "SETTINGS", "STAGES", "Settings", "images_read", "run_config", "run_seed", "unseen"]

STAGES = ("before", "pretrain", "captioner", "retrieval")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the experiment depends on but the data and the seed; chosen on `val` with one seed."""

    size: str = "micro"
    image_size: int = 112
    dropout: float = 0.1
    """of the text transformer"""
    drop_path: float = 0.1
    """of the vision tower"""
    vocab_size: int = 4000
    max_length: int = 32
    """tokens of a text; half of the alt texts are longer and are cut"""

    batch_size: int = 64
    crop_scale: tuple[float, float] = (0.3, 1.0)
    magnitude: float = 5.0
    web_share: float = 0.0
    """how often a book's own caption is drawn in pre-training for each alt text; 0 leaves them out"""
    queue_size: int = 0
    momentum: float = 0.95
    temperature_min: float = 0.05
    weight_decay: float = 0.1

    pretrain_steps: int = 160
    pretrain_rate: float = 1e-3
    captioner_steps: int = 60
    captioner_rate: float = 3e-4
    retrieval_steps: int = 80
    retrieval_rate: float = 3e-4
    evaluations: int = 5
    """of each stage on `val`, among which the best is chosen"""
    rerank_k: int = 16
    """candidates of each query that ITM reads"""


SETTINGS = {"openstax": Settings(), "openstax-web": Settings(web_share=0.5)}
"""experiment -> settings; both use the data set openstax"""

QUICK = Settings(
    size="nano",
    image_size=32,
    vocab_size=300,
    batch_size=4,
    pretrain_steps=4,
    captioner_steps=2,
    retrieval_steps=2,
    evaluations=1,
    rerank_k=4,
)
"""to see that everything runs, on a handful of images"""


def source(data: Path, split: str, *, column: str = "caption") -> SourceConfig:
    """One split of the data; alt text and book caption of an image share its image id."""
    return SourceConfig(
        path=str(data / "captions.jsonl"),
        name="openstax",
        split=split,
        text_column=column,
        id_column="image_id",
        meta_columns=("book",),
    )


def unseen(data: Path, split: str, image_size: int, *, wrong: int = 8) -> Unseen:
    """The images of a split, whole and small, with the alt text of each as training sees it."""
    opened = [open_source(source(data, split))]
    batches = list(evaluation_batches(opened, image_size, samples=len(opened[0]), clean="simplify"))
    return Unseen.of(batches, [str(meta["book"]) for batch in batches for meta in batch.meta], wrong=wrong)


def images_read(data: Path) -> dict[str, dict[str, Any]]:
    """Decode every image once with each of its texts: how many there are and what was skipped, by cause."""
    found: dict[str, dict[str, Any]] = {}
    for split in ("train", "val", "test"):
        for column in ("caption", "web_text"):
            opened = open_source(source(data, split, column=column))
            loader = Loader(opened, evaluation_transform(32), 64, shuffle=False, drop_last=False)
            for _ in loader:
                pass
            found[f"{split} {column}"] = {"samples": len(opened), "skipped": dict(loader.skipped.counts)}
    return found


def run_seed(data: Path, out: Path, seed: int, settings: Settings, *, show: bool = True) -> dict[str, Any]:
    """All stages of one seed in the folder `out`; what was finished there is taken up.

    Returns:
        "stages" (of each: "test", its metrics on `test`, and for those that train "steps", "seconds" and
        "best_on_val") and "captions" (one record for each image of `test`, written by the captioner).

    Raises:
        UserError: the folder holds a run with other settings.
    """
    keep_settings(out / "settings.json", settings, "a run")
    _begin(data, out / "before" / "model", seed, settings)
    val = unseen(data, "val", settings.image_size, wrong=2)
    test = unseen(data, "test", settings.image_size)
    result: dict[str, Any] = {"seed": seed, "stages": {}}
    for stage in STAGES:

        def make(stage: str = stage) -> dict[str, Any]:
            trained = {} if stage == "before" else _train(stage, data, out, seed, settings, val, show)
            adapter = adapt(open_model(out / stage / ("model" if stage == "before" else "best")))
            metrics, records = _measure(adapter, test, settings, seed)
            return {**trained, "test": metrics, "captions": records}

        found = once(out / f"{stage}.json", make)
        records = found.pop("captions")
        result["stages"][stage] = found
        if stage == "captioner":
            result["captions"] = records
    return result


def _begin(data: Path, folder: Path, seed: int, settings: Settings) -> None:
    """A model with random weights and a tokenizer of the training texts, kept in `folder`."""
    if folder.is_dir():
        return
    columns = ("caption", "web_text") if settings.web_share else ("caption",)
    sources = [open_source(source(data, "train", column=column)) for column in columns]
    texts = training_texts(sources, clean="simplify", limit=10**6)
    tokenizer = TextTokenizer.train(texts, vocab_size=settings.vocab_size)
    seed_everything(seed)
    sizes = blip_config(settings.size, vocab_size=tokenizer.vocab_size, image_size=settings.image_size)
    sizes = replace(
        sizes,
        vision=replace(sizes.vision, drop_path=settings.drop_path),
        text=replace(sizes.text, dropout=settings.dropout),
    )
    save_model(folder, StoredModel(Blip(sizes), tokenizer))


def run_config(stage: str, data: Path, out: Path, seed: int, settings: Settings) -> RunConfig:
    """One stage as a training run: everything it depends on."""
    sources = [source(data, "train")]
    if stage == "pretrain" and settings.web_share:
        sources[0] = replace(sources[0], weight=1.0)
        sources.append(replace(source(data, "train", column="web_text"), weight=settings.web_share))
    steps: int = getattr(settings, f"{stage}_steps")
    captioner = stage == "captioner"
    return RunConfig(
        sources=tuple(sources),
        model=str(out / ("before/model" if stage == "pretrain" else "pretrain/best")),
        task="pretraining" if stage == "pretrain" else "captioning" if captioner else "retrieval",
        transform=ImageTransformConfig(
            crop_scale=settings.crop_scale, ops=COLOR_KEEPING_OPS, magnitude=settings.magnitude, op_probability=1.0
        ),
        batch_size=settings.batch_size,
        num_workers=0,
        max_length=settings.max_length,
        max_words=settings.max_length,
        objective=ObjectiveConfig(
            queue_size=settings.queue_size,
            momentum=settings.momentum,
            alpha_ramp_epochs=4.0,
            temperature_min=settings.temperature_min,
            # An image meets its own older features in the queue, and its other text in the batch.
            use_image_ids=True,
        ),
        train=short_train(
            steps,
            optimizer="adamw",
            learning_rate=getattr(settings, f"{stage}_rate"),
            warmup_learning_rate=1e-6,
            weight_decay=settings.weight_decay,
            seed=seed,
            evaluate_every_steps=max(1, steps // settings.evaluations),
            checkpoint_every=0,
            monitor="perplexity_right" if captioner else "mean_auc",
            monitor_mode="min" if captioner else "max",
            trackers=(),
        ),
    )


def _train(
    stage: str, data: Path, out: Path, seed: int, settings: Settings, val: Unseen, show: bool
) -> dict[str, Any]:
    result = run_training(
        run_config(stage, data, out, seed, settings),
        out / stage,
        resume=True,
        evaluator=lambda adapter: _metrics(adapter, val, replace(settings, rerank_k=0)),
        title=f"{stage}, seed {seed}",
        show=show,
    )
    return {
        "steps": result.steps,
        "epochs": round(result.epochs, 1),
        "seconds": round(result.seconds, 1),
        "best_on_val": result.best,
    }


@torch.no_grad()
def _metrics(adapter: Adapter, images: Unseen, settings: Settings) -> dict[str, float]:
    """What the model's parts can be asked: matching of its encoder, likelihood of its decoder."""
    adapter.model.eval()
    metrics: dict[str, float] = {}
    length = settings.max_length
    if "match" in adapter.can:
        metrics |= matching_metrics(adapter, images, rerank_k=settings.rerank_k, max_length=length)
    if "likelihood" in adapter.can:
        metrics |= likelihood_metrics(adapter, images, max_length=length)
    return metrics


def _measure(
    adapter: Adapter, test: Unseen, settings: Settings, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    began = time.perf_counter()
    metrics = _metrics(adapter, test, settings)
    records: list[dict[str, Any]] = []
    if "caption" in adapter.can:
        scores, records = caption_metrics(adapter, test, seed=seed)
        metrics |= scores
    return {**metrics, "measuring_seconds": round(time.perf_counter() - began, 1)}, records
