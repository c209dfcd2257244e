"""Does BLIP-2 do what its paper claims? Questions over seeds, in the scene world.

    openblip experiments blip2      # writes runs/experiments/blip2/results.json and report.html

(a) Stage 2 with and without stage 1 before it (the paper's figure 5), as it learns and in the end.
(b) Each objective of stage 1 left out, before the same stage 2.
(c) 4, 16 and 32 queries; stage 1 at a quarter of the rate, which keeps the queries apart.
(d) A decoder against an encoder-decoder as the language model.
(e) Zero-shot answers: against guessing, against the same language model without the image, and against what it
    answers when it is told in words what is there.

The frozen parts are made once for all seeds: the tower of a BLIP, and language models that have seen text alone.
Each seed has images of its own. Every training is done once, whatever builds on it, and every row of a table is
written as soon as it is known; the same call resumes where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from openblip.checkpoints.blip2_parts import open_language, open_language_tokenizer
from openblip.core.config import keep_settings
from openblip.core.files import read_jsonl
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.world.dataset import WorldConfig, scene_from_meta, write_world
from openblip.experiments.judges import blip2_stages as world
from openblip.experiments.judges.zero_shot import accuracy, answers, ask_about, descriptions, guessing
from openblip.experiments.presets import LEARNING_RATE, scene_blip
from openblip.experiments.results import Metrics, Tables, result_of
from openblip.experiments.stages import once, trained
from openblip.models.configs import QFormerSettings, as_language
from openblip.objectives.configs import Stage1Config
from openblip.recipes.small import SHORT_STAGE1
from openblip.tasks.config import RunConfig
from openblip.tasks.families.blip2 import open_blip2
from openblip.tasks.training import run_training

__all__ = [
    "CURVES",
    "FIRST",
    "QUICK",
    "SECOND",
    "Blip2Experiment",
    "First",
    "Second",
    "Seed",
    "folder_name",
    "run_blip2_experiment",
]

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Blip2Experiment:
    """Sizes of the experiment."""

    tower: str = ""
    """folder of a BLIP model of ours whose vision tower is taken; "" pre-trains a short one"""
    tower_size: str = "micro"
    tower_steps: int = 600
    documents: int = 12_000
    """that the language models read"""
    language_steps: tuple[int, int] = (1000, 1000)
    """of the decoder and of the encoder-decoder"""
    images: int = 6000
    """with three true captions each; those of both stages"""
    test_images: int = 200
    """of each split that is measured"""
    stage1_steps: int = 250
    stage2_steps: int = 250
    batch_size: int = 64
    learning_rate: float = LEARNING_RATE


QUICK = Blip2Experiment(
    tower_size="nano", tower_steps=2, documents=60, language_steps=(2, 2),
    images=32, test_images=3, stage1_steps=2, stage2_steps=2, batch_size=8,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class First:
    """A variant of stage 1."""

    objective: Stage1Config = field(default_factory=lambda: SHORT_STAGE1)
    queries: int = 16
    rate: float = 1.0
    """of the experiment's learning rate"""


@dataclass(frozen=True, kw_only=True)
class Second:
    """A variant of stage 2."""

    first: str = "whole"
    """the stage 1 that it continues from; "" for none"""
    language: str = "decoder"


FIRST: dict[str, First] = {
    "whole": First(),
    # ITM draws its negatives by ITC's similarities; untrained, these are as good as even.
    "without ITC": First(objective=replace(SHORT_STAGE1, weights=(0.0, 1.0, 1.0))),
    "without ITM": First(objective=replace(SHORT_STAGE1, objectives=("itc", "itg"))),
    "without ITG": First(objective=replace(SHORT_STAGE1, objectives=("itc", "itm"))),
    "4 queries": First(queries=4),
    "32 queries": First(queries=32),
    # At the full rate the queries come to say nearly the same, at this one ITM learns too slowly.
    "gentle rate": First(rate=0.25),
}
SECOND: dict[str, Second] = {
    "whole": Second(),
    "without stage 1": Second(first=""),
    "encoder-decoder": Second(language="encoder-decoder"),
    "encoder-decoder without stage 1": Second(first="", language="encoder-decoder"),
    "encoder-decoder, gentle rate": Second(first="gentle rate", language="encoder-decoder"),
    **{name: Second(first=name) for name in FIRST if name != "whole"},
}
"""rows of stage 2; those with a stage 1 of the same name show what its variant is worth there"""
CURVES = tuple(name for name, variant in SECOND.items() if variant.first in ("whole", ""))
"""rows of stage 2 that are looked at while they learn"""
_LOOKED_AT = 60
"""images of each such look"""


def run_blip2_experiment(
    out: Path | str, config: Blip2Experiment, *, seeds: int = 3, on_stage: Tell | None = None
) -> dict[str, Any]:
    """Run what is not done yet.

    Returns:
        as `experiments.results.result_of`, with "curves": of each seed, how stage 2 learned

    Raises:
        UserError: the folder holds an experiment with other settings.
    """
    out = Path(out)
    keep_settings(out / "experiment.json", config, "an experiment")
    tell = on_stage or (lambda _: None)
    tables: list[Tables] = []
    curves = []
    for number in range(seeds):
        seed = Seed(out, config, number, tell)
        first = {name: seed.measured_first(name) for name in FIRST}
        second = {name: seed.measured_second(name) for name in SECOND}
        tables.append({"stage 1": first, "stage 2": second, "language": seed.language_alone()})
        curves.append({name: seed.curve(name) for name in CURVES})
    return result_of(config, tables, curves=curves)


class Seed:
    """One seed of the experiment; each of its parts is made when it is first requested."""

    def __init__(self, out: Path, config: Blip2Experiment, number: int, tell: Tell) -> None:
        self.root, self.out, self.config, self.number = out, out / f"seed-{number}", config, number
        self._tell = tell

    def tell(self, what: str) -> None:
        """Say what is done now."""
        self._tell(f"seed {self.number}: {what}")

    def once(self, name: str, measure: Callable[[], Metrics]) -> Metrics:
        """What the seed's file of this name holds; `measure` gives it the first time."""
        found: Metrics = once(self.out / "results" / f"{name}.json", measure)
        return found

    # Frozen parts, the same for all seeds -----------------------------------------------------------------

    @cached_property
    def tower(self) -> str:
        """The frozen vision tower, by its source."""
        if self.config.tower:
            return f"openblip:{self.config.tower}"

        def train(run: Path) -> None:
            self.tell("a BLIP for its vision tower")
            made = self.blip(
                self.world("train", self.root / "tower-world", seed=1), self.config.tower_steps, seed=0
            )
            run_training(made, run, resume=True, title="BLIP", show=False)

        return f"openblip:{trained(self.root / 'tower', train)}"

    def language(self, name: str) -> Path:
        """The folder of a language model that has seen text alone."""

        def train(run: Path) -> None:
            self.tell(f"a language model ({name}) from text alone")
            steps = self.config.language_steps[list(world.LANGUAGES).index(name)]
            world.train_world_language(
                name, run, count=self.config.documents, steps=steps, batch_size=self.config.batch_size, show=False
            )

        return trained(self.root / f"language-{name}", train)

    # Images ---------------------------------------------------------------------------------------------

    def world(self, split: str, folder: Path | None = None, *, seed: int | None = None) -> SourceConfig:
        """Images with true captions, drawn into a folder once."""
        folder = folder or self.out / "world" / split
        if not folder.exists():
            count = self.config.images if split == "train" else self.config.test_images
            own = 10 + self.number if seed is None else seed
            write_world(folder, WorldConfig(split=split, num_samples=count, seed=own), layout="jsonl")  # type: ignore[arg-type]
        return SourceConfig(path=str(folder / "captions.jsonl"), text_column="captions", meta_columns=("scene",))

    @cached_property
    def features(self) -> Path:
        """What the tower sees of the images to train on."""
        self.tell("features of the frozen tower")
        return world.world_features(self.world("train"), self.tower, self.out / "features")

    # Trainings --------------------------------------------------------------------------------------------

    def first(self, name: str) -> Path:
        """The model of a variant of stage 1, by its folder."""

        def train(run: Path) -> None:
            config = self.first_config(name)
            self.tell(f"stage 1, {name}")
            run_training(config, run, resume=True, title="stage 1", show=False)

        return trained(self.out / "stage1" / folder_name(name), train)

    def first_config(self, name: str) -> RunConfig:
        """The run of a variant of stage 1."""
        variant = FIRST[name]
        made = self._run("stage1", self.config.stage1_steps, self._qformer(variant.queries), tower=self.tower)
        rate = self.config.learning_rate * variant.rate
        return replace(made, stage1=variant.objective, train=replace(made.train, learning_rate=rate))

    def second(self, name: str) -> Path:
        """The model of a variant of stage 2, by its folder."""

        def train(run: Path) -> None:
            config = self.second_config(name)
            self.tell(f"stage 2, {name}")
            look = self._quick_look if name in CURVES else None
            run_training(config, run, resume=True, title="stage 2", evaluator=look, show=False)

        return trained(self.out / "stage2" / folder_name(name), train)

    def second_config(self, name: str) -> RunConfig:
        """The run of a variant of stage 2."""
        variant = SECOND[name]
        model = str(self.first(variant.first)) if variant.first else ""
        made = self._run(
            "stage2", self.config.stage2_steps, self._qformer(FIRST["whole"].queries),
            tower=self.tower, model=model, language=str(self.language(variant.language)),
        )  # fmt: skip
        every = max(1, self.config.stage2_steps // 5) if name in CURVES else 0
        return replace(made, train=replace(made.train, evaluate_every_steps=every))

    def _run(self, stage: Any, steps: int, qformer: QFormerSettings, **frozen: Any) -> RunConfig:
        config = self.config
        return world.world_run(
            stage, self.world("train"), features=self.features, steps=steps, qformer=qformer, seed=self.number,
            batch_size=config.batch_size, learning_rate=config.learning_rate, **frozen,
        )  # fmt: skip

    def _qformer(self, queries: int) -> QFormerSettings:
        return replace(world.QFORMER, num_queries=queries)

    def blip(self, source: SourceConfig, steps: int, *, seed: int) -> RunConfig:
        """A BLIP from scratch, with the settings of the runs here."""
        return scene_blip(
            (source,), size=self.config.tower_size, steps=steps, batch_size=self.config.batch_size,
            learning_rate=self.config.learning_rate, seed=seed,
        )  # fmt: skip

    # What comes of them -----------------------------------------------------------------------------------

    def measured_first(self, name: str) -> Metrics:
        """Retrieval, matching and writing after a variant of stage 1."""

        def measure() -> Metrics:
            stored = open_blip2(self.first(name))
            self.tell(f"stage 1, {name}: measured")
            count = self.config.test_images
            found = world.measure_stage1(stored, self.first_config(name), self.world("test"), count)
            return found | {
                "trained_parameters": float(stored.model.num_trained()),
                "query_likeness": world.query_likeness(stored, self.world("test"), count),
            }

        return self.once(f"stage1-{folder_name(name)}", measure)

    def measured_second(self, name: str) -> Metrics:
        """Captions and zero-shot answers after a variant of stage 2, on the two splits."""

        def measure() -> Metrics:
            stored = open_blip2(self.second(name))
            self.tell(f"stage 2, {name}: measured")
            count = self.config.test_images
            found = world.measure_stage2(stored, self.world("test"), count)
            new = world.measure_stage2(stored, self.world("novel"), count, novel=True)
            likeness = {"query_likeness": world.query_likeness(stored, self.world("test"), count)}
            return found | likeness | {f"novel_{name}": new[name] for name in ("truth", "answers_all")}

        return self.once(f"stage2-{folder_name(name)}", measure)

    def curve(self, name: str) -> dict[str, list[float]]:
        """A variant of stage 2 as it learned: steps, captions true, answers right."""
        records = read_jsonl(self.out / "stage2" / folder_name(name) / "metrics.jsonl")
        rows = [record for record in records if record["split"] == "eval"]
        return {key: [float(row[key]) for row in rows] for key in ("step", "truth", "answers_all")}

    def _quick_look(self, adapter: Any) -> Metrics:
        return world.measure_stage2(adapter, self.world("val"), min(_LOOKED_AT, self.config.test_images))

    def language_alone(self) -> dict[str, Metrics]:
        """What is answered without an image: by guessing, by each language model, and by one that is told."""
        source = open_source(self.world("test"))
        scenes = [scene_from_meta(source[index].meta) for index in range(len(source))]
        asked = ask_about(scenes)
        told = descriptions(scenes, seed=self.number, split="test")

        def measure(name: str) -> Metrics:
            config = as_language(str(self.language(name)))
            llm, language_tokenizer = open_language(config), open_language_tokenizer(config)
            self.tell(f"{name} without an image")
            blind = accuracy(asked, answers(llm, language_tokenizer, asked))
            knows = accuracy(asked, answers(llm, language_tokenizer, asked, told=told))
            return blind | {f"told_{kind}": share for kind, share in knows.items()}

        rows = {"guessing": guessing(asked)}
        for name in world.LANGUAGES:
            both = self.once(f"language-{name}", partial(measure, name))
            rows[f"{name}, nothing seen"] = {k: v for k, v in both.items() if not k.startswith("told_")}
            rows[f"{name}, told"] = {k[5:]: v for k, v in both.items() if k.startswith("told_")}
        return {row: {f"answers_{kind}": share for kind, share in metrics.items()} for row, metrics in rows.items()}


def folder_name(name: str) -> str:
    """The name of a row as that of a file."""
    return name.lower().replace(", ", "-").replace(" ", "-")
