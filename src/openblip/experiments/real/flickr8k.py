"""BLIP-2 on Flickr8k from pretrained parts: a tower that never saw words, a language model that never saw images.

    openblip experiments flickr8k            # (a) stage 1, (b) stage 2 with and without it, (e) zero-shot answers
    openblip experiments flickr8k-variants   # (c) each objective of stage 1 left out; 8, 32 and 64 queries

Both write to runs/experiments/flickr8k and share what they train. The tower's features are computed once; all is
measured on photographs of `val`, which decide nothing: no step is chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from openblip.core.config import keep_settings
from openblip.core.files import read_jsonl
from openblip.data.sample import Batch
from openblip.experiments.real.flickr8k_data import Flickr8kSettings, Places, unseen
from openblip.experiments.real.flickr8k_questions import KINDS, accuracy, answer, ask_about, guessing
from openblip.experiments.results import Metrics, Tables, result_of
from openblip.experiments.stages import once, trained
from openblip.generation.config import DecodeConfig
from openblip.metrics.caption import caption_scores
from openblip.models.configs import as_language
from openblip.objectives.configs import Stage1Config
from openblip.recipes.small import SHORT_STAGE1, small_stage1
from openblip.tasks.captioning import evaluate_captions
from openblip.tasks.config import RunConfig
from openblip.tasks.families.blip2 import Blip2Adapter, open_blip2
from openblip.tasks.protocols import Adapter
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.training import run_training
from openblip.training.config import TrainConfig

__all__ = [
    "BEAM",
    "QUICK",
    "VARIANTS",
    "Seed",
    "Tell",
    "Variant",
    "fine_tuning",
    "open_seeds",
    "run",
    "run_variants",
    "written_captions",
]

Tell = Callable[[str], None]
QUICK = Flickr8kSettings(
    image_size=28, train_images=16, test_images=8, batch_size=4, stage1_steps=2, rerank_k=2,
    variant_steps=2, variant_images=6, stage2_steps=2, stage2_batch=4, looks=1, look_images=4,
    blip_steps=2, blip_batch=4, captioner_steps=2, questions=4, threshold=0.0, gain_batch=4, gain_steps=2,
)  # fmt: skip
BEAM = DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=24)
"""how captions are written that are measured at the end"""
GREEDY = DecodeConfig(max_new_tokens=20)
_SHOWN = 12
_SECOND = {"stage 1 before it": True, "without stage 1": False}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A stage 1 with something changed."""

    objective: Stage1Config = SHORT_STAGE1
    queries: int = 32


VARIANTS: dict[str, Variant] = {
    "whole": Variant(),
    # ITM draws its negatives by ITC's similarities; untrained, these are as good as even.
    "without ITC": Variant(objective=replace(SHORT_STAGE1, weights=(0.0, 1.0, 1.0))),
    "without ITM": Variant(objective=replace(SHORT_STAGE1, objectives=("itc", "itg"))),
    "without ITG": Variant(objective=replace(SHORT_STAGE1, objectives=("itc", "itm"))),
    "8 queries": Variant(queries=8),
    "64 queries": Variant(queries=64),
}


def fine_tuning(steps: int, rate: float, seed: int, **changes: Any) -> TrainConfig:
    """Training from pretrained parts: AdamW, a short warm-up, a cosine in steps."""
    preset: dict[str, Any] = {
        "max_steps": steps,
        "learning_rate": rate,
        "min_learning_rate": rate / 50,
        "warmup_steps": min(100, steps // 5),
        "warmup_learning_rate": rate / 100,
        "schedule": "cosine",
        "betas": (0.9, 0.98),
        "weight_decay_on": "matrices",
        "clip_norm": 3.0,
        "evaluate_every_epochs": 0,
        "checkpoint_every": 100,
        "keep_checkpoints": 1,
        "trackers": (),
        "seed": seed,
    }
    return TrainConfig(**(preset | changes))


class Seed:
    """One seed; each of its parts is made when it is first requested."""

    def __init__(self, places: Places, number: int, tell: Tell) -> None:
        self.places, self.config, self.number = places, places.config, number
        self.out = places.out / f"seed-{number}"
        self._tell = tell

    def tell(self, what: str) -> None:
        """Say what is done now."""
        self._tell(f"seed {self.number}: {what}")

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """What the seed's file of this name holds; `measure` gives it the first time."""
        return once(self.out / "results" / f"{name}.json", measure)

    # Trainings --------------------------------------------------------------------------------------------

    def stage1_run(self, variant: Variant, steps: int) -> RunConfig:
        """Stage 1 over the cached features of the frozen tower, from a BERT."""
        config = self.config
        base = small_stage1((str(self.places.data / "train.jsonl"),), vision=self.places.tower.source, steps=steps)
        return replace(
            base,
            sources=(self.places.source("train"),),
            features=(str(self.places.features("train")),),
            vision=self.places.tower,
            text_pretrained=str(self.places.part(config.text)),
            qformer=replace(base.qformer, num_queries=variant.queries, dropout=config.dropout),
            embed_dim=config.embed_dim,
            stage1=replace(
                variant.objective,
                itm_share=config.itm_share,
                itg_share=config.itg_share,
                hard_share=config.hard_share,
            ),
            batch_size=config.batch_size,
            num_workers=0,  # there is nothing to decode
            max_length=config.max_length,
            max_words=config.max_length,
            train=fine_tuning(steps, config.stage1_rate, self.number),
        )

    def stage1(self, name: str = "") -> Path:
        """The model of stage 1, by its folder; `name` is one of `VARIANTS`, which train for fewer steps."""
        variant = VARIANTS[name] if name else Variant(queries=self.config.queries)
        steps = self.config.variant_steps if name else self.config.stage1_steps

        def train(run: Path) -> None:
            config = self.stage1_run(variant, steps)
            self.tell(f"stage 1{', ' * bool(name)}{name}")
            run_training(config, run, resume=True, title="stage 1", show=False)

        return trained(self.out / f"stage1{'-' * bool(name)}{name.replace(' ', '-')}", train)

    def stage2_run(self, *, after_stage1: bool) -> RunConfig:
        """The language model behind the Q-Former of stage 1, or behind one with BERT's weights."""
        config = self.config
        language = as_language(str(self.places.part(config.language)))
        every = max(1, config.stage2_steps // config.looks)
        return replace(
            self.stage1_run(Variant(queries=config.queries), config.stage2_steps),
            task="captioning",
            model=str(self.stage1()) if after_stage1 else "",
            text_pretrained="" if after_stage1 else str(self.places.part(config.text)),
            language=replace(language, dtype=config.dtype),
            prompt=config.prompt,
            max_length=config.stage2_length,
            fit_soft_prompts=True,
            batch_size=config.stage2_batch,
            train=fine_tuning(config.stage2_steps, config.stage2_rate, self.number, evaluate_every_steps=every),
        )

    def stage2(self, *, after_stage1: bool) -> Path:
        """The model of stage 2, by its folder."""

        def train(run: Path) -> None:
            second = self.stage2_run(after_stage1=after_stage1)
            self.tell(f"stage 2, {'after' if after_stage1 else 'without'} stage 1")
            run_training(second, run, resume=True, title="stage 2", evaluator=self._look, show=False)

        return trained(self.out / ("stage2" if after_stage1 else "stage2-alone"), train)

    def _look(self, adapter: Adapter) -> Metrics:
        """CIDEr and BLEU-4 of greedy captions of a few photographs, while stage 2 learns."""
        batches = list(unseen(self.places, adapter, samples=self.config.look_images))
        metrics, _ = written_captions(adapter, batches, GREEDY)
        return {name: metrics[name] for name in ("CIDEr", "BLEU-4")}

    # What comes of them -----------------------------------------------------------------------------------

    def measured_stage1(self, name: str = "") -> Metrics:
        """Recall by ITC and after ITM, ITM's AUC, ITG's perplexity, of stage 1 or a variant of it."""

        def measure() -> Metrics:
            stored = open_blip2(self.stage1(name))
            self.tell(f"stage 1 measured{', ' * bool(name)}{name}")
            count = self.config.variant_images if name else self.config.test_images
            batches = list(unseen(self.places, stored, samples=count))
            found = evaluate_retrieval(
                stored.need("match"), batches, rerank_k=self.config.rerank_k, max_length=self.config.max_length
            )
            more = stored.extra_metrics(lambda: batches, max_length=self.config.max_length)
            return found | more | {"trained_parameters": float(stored.model.num_trained())}

        found: Metrics = self.once(f"stage1{'-' * bool(name)}{name.replace(' ', '-')}", measure)
        return found

    def measured_stage2(self, *, after_stage1: bool) -> tuple[Metrics, list[dict[str, Any]]]:
        """Captions of all photographs of `val`: metrics, and one record for each."""

        def measure() -> Any:
            stored = open_blip2(self.stage2(after_stage1=after_stage1))
            self.tell(f"stage 2 measured, {'after' if after_stage1 else 'without'} stage 1")
            batches = list(unseen(self.places, stored, samples=self.config.test_images))
            return written_captions(stored, batches, BEAM)

        metrics, records = self.once("stage2" if after_stage1 else "stage2-alone", measure)
        return metrics, records

    def answered(self) -> dict[str, Metrics]:
        """Zero-shot answers after stage 2, with another image, without any, and by guessing."""

        def measure() -> Any:
            found: dict[str, Any] = {}
            for name, after_stage1 in _SECOND.items():
                stored = open_blip2(self.stage2(after_stage1=after_stage1))
                self.tell(f"questions, {name}")
                soft, captions = self._seen(stored)
                asked = ask_about(captions, most=self.config.questions)
                shown: dict[str, Tensor | None] = {f"BLIP-2, {name}": soft}
                if after_stage1:
                    shown["BLIP-2, another image"] = soft.roll(1, 0)
                    shown["language model alone"] = None
                    found["guessing"] = _ways(asked, guessing(asked), guessing(asked))
                tokenizer = stored.language_tokenizer
                for label, seen in shown.items():
                    written, ranked = answer(stored.model.llm, tokenizer, asked, soft=seen)
                    found[label] = _ways(asked, accuracy(asked, written), accuracy(asked, ranked))
            return found

        found: dict[str, Metrics] = self.once("answers", measure)
        return found

    @torch.no_grad()
    def _seen(self, stored: Blip2Adapter) -> tuple[Tensor, list[list[str]]]:
        """Soft prompts [images, Q, L] of `val`, and the captions of each image."""
        soft, captions = [], []
        for batch in unseen(self.places, stored, samples=self.config.test_images):
            soft.append(stored.model.soft_prompt(stored.remember(stored.encode(batch.images))).float())
            captions += batch.texts_of_images
        return torch.cat(soft), captions

    def curve(self, *, after_stage1: bool) -> dict[str, list[float]]:
        """Stage 2 as it learned: steps, CIDEr and BLEU-4 of the photographs looked at."""
        run = self.stage2(after_stage1=after_stage1).parent
        rows = [record for record in read_jsonl(run / "metrics.jsonl") if record["split"] == "eval"]
        return {key: [float(row[key]) for row in rows] for key in ("step", "CIDEr", "BLEU-4")}


def _ways(asked: Sequence[Any], written: Metrics, ranked: Metrics) -> Metrics:
    counts = {f"questions_{kind}": float(sum(one.kind == kind for one in asked)) for kind in KINDS}
    named = {f"written_{kind}": share for kind, share in written.items()}
    return named | {f"ranked_{kind}": share for kind, share in ranked.items()} | counts


@torch.no_grad()
def written_captions(
    adapter: Adapter, batches: Sequence[Batch], config: DecodeConfig
) -> tuple[Metrics, list[dict[str, Any]]]:
    """Captions of photographs against what people wrote, and handed to another photograph as a control.

    Returns:
        BLEU, ROUGE-L, CIDEr, "CIDEr_wrong" (of the captions of the photograph before) and "distinct", the share of
        captions that are unlike all others; and one record for each image.
    """
    adapter.model.eval()
    metrics, records = evaluate_captions(
        adapter.need("caption"), batches, config, prompt=adapter.prompt, perplexity=False
    )
    written = [str(record["caption"]) for record in records]
    references = [cast("list[str]", record["references"]) for record in records]
    metrics["CIDEr_wrong"] = caption_scores([written[-1], *written[:-1]], references)["CIDEr"]
    metrics["distinct"] = len(set(written)) / len(written)
    return metrics, records


def run(
    out: Path,
    config: Flickr8kSettings,
    *,
    data: Path,
    seeds: int = 3,
    on_stage: Tell | None = None,
) -> dict[str, Any]:
    """Stage 1, stage 2 with and without it, zero-shot answers; what is finished in `out` is taken up.

    Returns:
        as `experiments.results.result_of`, with "curves" (of each seed, how stage 2 learned) and "captions" of
        seed 0; what people wrote is the data set's, and no part of a result.

    Raises:
        UserError: the folder holds an experiment with other settings, or parts are missing.
    """
    tables: list[Tables] = []
    curves: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for seed in open_seeds(out, config, data, seeds, on_stage):
        first = seed.measured_stage1()
        second = {}
        for name, after_stage1 in _SECOND.items():
            second[name], records = seed.measured_stage2(after_stage1=after_stage1)
            if seed.number == 0 and after_stage1:
                shown = records[:: max(1, len(records) // _SHOWN)][:_SHOWN]
                captions = [{key: one[key] for key in ("key", "caption")} for one in shown]
        tables.append({"stage 1": {"stage 1": first}, "stage 2": second, "answers": seed.answered()})
        curves.append({name: seed.curve(after_stage1=after) for name, after in _SECOND.items()})
    return result_of(config, tables, curves=curves, captions=captions)


def run_variants(
    out: Path,
    config: Flickr8kSettings,
    *,
    data: Path,
    seeds: int = 3,
    on_stage: Tell | None = None,
) -> dict[str, Any]:
    """Stage 1 without each of its objectives and with other numbers of queries; arguments as for `run`."""
    tables: list[Tables] = []
    for seed in open_seeds(out, config, data, seeds, on_stage):
        tables.append({"variants": {name: seed.measured_stage1(name) for name in VARIANTS}})
    return result_of(config, tables)


def open_seeds(out: Path, config: Flickr8kSettings, data: Path, seeds: int, on_stage: Tell | None) -> list[Seed]:
    """The seeds of an experiment in its folder, with the settings that the folder was begun with.

    Raises:
        UserError: the folder holds an experiment with other settings.
    """
    keep_settings(out / "experiment.json", config, "an experiment")
    return [Seed(Places(data, out, config), number, on_stage or (lambda _: None)) for number in range(seeds)]
