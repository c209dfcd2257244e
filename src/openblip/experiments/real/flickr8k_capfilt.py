"""CapFilt on textbook images, with captioner and filter trained on Flickr8k: BLIP-2's stages 2 and 1.

    openblip experiments flickr8k-capfilt    # (f), with the models of `openblip experiments flickr8k`

The 1,900 images of openstax have an alt text, which says what is seen, and the book's own caption, which often says
something else. The filter reads both, an alt text of another image, and what the captioner writes. Then the books'
captions of the training images pass through CapFilt, and the filter's model is trained on with the texts as they
are and as CapFilt leaves them: which one finds the alt texts of other books' images better?
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from openblip.bootstrap.job import NUCLEUS, CapFiltConfig, Output
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.run import run_capfilt
from openblip.checkpoints.store import open_model
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.experiments.real.flickr8k import Seed, Tell, Variant, fine_tuning, open_seeds
from openblip.experiments.real.flickr8k_data import Flickr8kSettings
from openblip.experiments.real.openstax import source
from openblip.experiments.real.openstax_filter import PAPER, judged, texts_by_kind, write_noisy
from openblip.experiments.results import Metrics, Tables, result_of
from openblip.experiments.stages import trained
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.registry import adapt
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.training import run_training

__all__ = ["SPLITS", "run"]

SPLITS = ("train", "val", "test")
_SHOWN = 10
_TEXTS = {"books' captions as they are": "web", "the same through CapFilt": "cleaned"}


class _CapFilt:
    """One seed."""

    def __init__(self, seed: Seed, data: Path) -> None:
        self.seed, self.data = seed, data
        self.out = seed.out / "capfilt"

    def config(self, source: SourceConfig) -> CapFiltConfig:
        """The models of the seed on a collection."""
        return CapFiltConfig(
            source=source,
            captioner=str(self.seed.stage2(after_stage1=True)),
            filter=str(self.seed.stage1()),
            decode=NUCLEUS,
        )

    def scored(self) -> tuple[Metrics, list[dict[str, Any]]]:
        """What the filter makes of each kind of text, over all splits, and some rows to look at."""

        def measure() -> Any:
            scores: list[dict[str, float]] = []
            rows: list[dict[str, Any]] = []
            for split in SPLITS:
                noisy, target = self.out / f"{split}.jsonl", self.out / f"scored-{split}"
                if not noisy.exists():
                    write_noisy(self.data, split, noisy)
                self.seed.tell(f"CapFilt reads {split}")
                web = SourceConfig(path=str(noisy), image_root=str(self.data.resolve()), meta_columns=("kinds",))
                run_capfilt(self.config(web), target, Output(layout="none"))
                for key, texts in texts_by_kind(target):
                    scores.append({kind: float(text.itm or 0.0) for kind, text in texts.items()})
                    shown = {
                        kind: {"text": text.text, "itm": round(text.itm or 0.0, 3)} for kind, text in texts.items()
                    }
                    rows.append({"image": key, **shown})
            return judged(scores, PAPER, "paper"), rows[:: max(1, len(rows) // _SHOWN)][:_SHOWN]

        metrics, rows = self.seed.once("capfilt", measure)
        return metrics, rows

    def cleaned(self) -> SourceConfig:
        """The books' captions of the training images through CapFilt."""
        target = self.out / "cleaned"
        if not (target / "captions.jsonl").exists():
            self.seed.tell("CapFilt cleans")
            policy = Policy(threshold=self.seed.config.threshold)
            web = source(self.data, "train", column="web_text")
            run_capfilt(self.config(web), target, Output(policy=policy, layout="jsonl"))
        return SourceConfig(path=str(target / "captions.jsonl"))

    def gain(self) -> dict[str, Metrics]:
        """Retrieval of alt texts of other books' images: before, and after training on either set of texts."""

        def measure() -> Any:
            found = {"before": self._recall(self.seed.stage1())}
            for name, texts in _TEXTS.items():
                web = source(self.data, "train", column="web_text") if texts == "web" else self.cleaned()
                found[name] = self._recall(self._tuned(texts, web))
            return found

        found: dict[str, Metrics] = self.seed.once("capfilt-gain", measure)
        return found

    def _tuned(self, name: str, texts: SourceConfig) -> Path:
        def train(run: Path) -> None:
            config = self.seed.config
            tuned = replace(
                self.seed.stage1_run(Variant(queries=config.queries), config.gain_steps),
                sources=(texts,),
                features=(),
                model=str(self.seed.stage1()),
                text_pretrained="",
                batch_size=config.gain_batch,
                train=fine_tuning(config.gain_steps, config.stage1_rate / 5, self.seed.number),
            )
            self.seed.tell(f"trained on {name}")
            run_training(tuned, run, resume=True, title=name, show=False)

        return trained(self.out / f"trained-{name}", train)

    def _recall(self, model: Path) -> Metrics:
        adapter = adapt(open_model(model))
        opened = open_source(source(self.data, "test"))
        batches = evaluation_batches([opened], adapter.image_size, samples=len(opened), clean="simplify")
        return evaluate_retrieval(
            adapter.need("match"), batches, rerank_k=self.seed.config.rerank_k,
            max_length=self.seed.config.max_length,
        )  # fmt: skip


def run(
    out: Path,
    config: Flickr8kSettings,
    *,
    data: Path,
    seeds: int = 3,
    on_stage: Tell | None = None,
) -> dict[str, Any]:
    """The filter's scores and what cleaning gains; arguments as for `flickr8k.run`.

    Returns:
        as `result_of`, with "rows" of seed 0: images of openstax with their texts and ITM probabilities.
    """
    tables: list[Tables] = []
    rows: list[dict[str, Any]] = []
    for seed in open_seeds(out, config, data, seeds, on_stage):
        one = _CapFilt(seed, data.parent / "openstax")
        scores, some = one.scored()
        rows = rows or some
        tables.append({"filter": {"filter": scores}, "gain": one.gain()})
    return result_of(config, tables, rows=rows)
