"""BLIP beside BLIP-2 on Flickr8k, from the same vision tower and the same BERT.

    openblip experiments flickr8k-blip       # (d), in the folder of `openblip experiments flickr8k`

BLIP trains all of it on (ITC, ITM and LM, then LM alone for captions); BLIP-2 leaves the tower frozen, trains a
Q-Former over cached features, and has a language model behind it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from openblip.checkpoints.store import open_model
from openblip.data.sample import Batch
from openblip.data.sources.open import open_source
from openblip.data.transform_config import ImageTransformConfig
from openblip.experiments.cost import step_cost
from openblip.experiments.real.flickr8k import BEAM, Seed, Tell, Variant, fine_tuning, open_seeds, written_captions
from openblip.experiments.real.flickr8k_data import Flickr8kSettings
from openblip.experiments.results import Metrics, Tables, result_of
from openblip.experiments.stages import trained
from openblip.recipes.small import SHORT_RUN, small_pretrain
from openblip.tasks.config import RunConfig
from openblip.tasks.evaluation import FirstSamples, evaluation_batches
from openblip.tasks.protocols import Adapter
from openblip.tasks.registry import adapt
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.training import run_training

__all__ = ["Blip", "run"]

_CROPS = ImageTransformConfig(crop_scale=(0.5, 1.0), flip=False, ops=())


class Blip:
    """BLIP of one seed; its two models are made when they are first requested."""

    def __init__(self, seed: Seed) -> None:
        self.seed, self.places, self.config = seed, seed.places, seed.config

    def pretrain_run(self) -> RunConfig:
        """ITC, ITM and LM from the tower and the BERT."""
        config, places = self.config, self.places
        base = small_pretrain((str(places.data / "train.jsonl"),), model="from-parts", steps=config.blip_steps)
        return replace(
            base,
            sources=(places.source("train"),),
            vision_pretrained=f"hf:{places.part(config.vision)}",
            text_pretrained=str(places.part(config.text)),
            image_size=config.image_size,
            transform=_CROPS,
            objective=SHORT_RUN,
            batch_size=config.blip_batch,
            max_length=config.max_length,
            max_words=config.max_length,
            train=fine_tuning(config.blip_steps, config.blip_rate, self.seed.number),
        )

    def pretrained(self) -> Path:
        """The model after ITC, ITM and LM, which is CapFilt's filter too."""

        def train(run: Path) -> None:
            config = self.pretrain_run()
            self.seed.tell("BLIP")
            run_training(config, run, resume=True, title="BLIP", show=False)

        return trained(self.seed.out / "blip", train)

    def captioner_run(self) -> RunConfig:
        """LM alone, from the model after pre-training."""
        return replace(
            self.pretrain_run(),
            task="captioning",
            model=str(self.pretrained()),
            vision_pretrained="",
            text_pretrained="",
            train=fine_tuning(self.config.captioner_steps, self.config.blip_rate / 2, self.seed.number),
        )

    def captioner(self) -> Path:
        """The model after LM alone."""

        def train(run: Path) -> None:
            config = self.captioner_run()
            self.seed.tell("BLIP, captions")
            run_training(config, run, resume=True, title="BLIP, captions", show=False)

        return trained(self.seed.out / "blip-captioner", train)

    def measured(self) -> Metrics:
        """Recall, matching and captions on `val`."""

        def measure() -> Metrics:
            matcher = adapt(open_model(self.pretrained()))
            self.seed.tell("BLIP measured")
            found = evaluate_retrieval(
                matcher.need("match"), self._unseen(matcher), rerank_k=self.config.rerank_k,
                max_length=self.config.max_length,
            )  # fmt: skip
            writer = adapt(open_model(self.captioner()))
            captions, _ = written_captions(writer, self._unseen(writer), BEAM)
            return found | captions

        found: Metrics = self.seed.once("blip", measure)
        return found

    def _unseen(self, adapter: Adapter) -> list[Batch]:
        source = FirstSamples(open_source(self.places.source("val")), self.config.test_images)
        return list(
            evaluation_batches([source], adapter.image_size, samples=self.config.test_images, clean="simplify")
        )

    def costs(self) -> dict[str, Metrics]:
        """What a step of each training costs, and all its steps by that; BLIP-2 reads cached features."""
        seed, config = self.seed, self.config
        runs = {
            "BLIP": self.pretrain_run(),
            "BLIP, captions": self.captioner_run(),
            "BLIP-2, stage 1": seed.stage1_run(Variant(queries=config.queries), config.stage1_steps),
            # A step costs the same whatever the weights that it starts from.
            "BLIP-2, stage 2": seed.stage2_run(after_stage1=False),
        }

        def measure() -> Any:
            found: dict[str, Metrics] = {}
            for name, run in runs.items():
                steps = float(run.train.max_steps or 0)
                seed.tell(f"cost of a step, {name}")
                cost = step_cost(run, seed.out / "cost", repeats=3)
                found[name] = {
                    "trained_parameters": cost["trained_parameters"],
                    "gflops": cost["gflops"],
                    "seconds": cost["seconds"],
                    "images": float(run.batch_size),
                    "steps": steps,
                    "minutes": steps * cost["seconds"] / 60,
                }
            return found

        found: dict[str, Metrics] = seed.once("step-cost", measure)
        return found


def run(
    out: Path,
    config: Flickr8kSettings,
    *,
    data: Path,
    seeds: int = 3,
    on_stage: Tell | None = None,
) -> dict[str, Any]:
    """BLIP and BLIP-2: what comes of them, and what they cost (measured once); arguments as for `flickr8k.run`."""
    tables: list[Tables] = []
    for seed in open_seeds(out, config, data, seeds, on_stage):
        blip = Blip(seed)
        second, _ = seed.measured_stage2(after_stage1=True)
        tables.append({"models": {"BLIP": blip.measured(), "BLIP-2": seed.measured_stage1() | second}})
        if seed.number == 0:
            tables[0]["cost"] = blip.costs()
    return result_of(config, tables)
