"""Does CapFilt do what the BLIP paper claims? Four questions, over seeds, in the scene world.

    openblip experiments capfilt                  # writes runs/experiments/capfilt/results.json and report.html

(a) How well does the filter tell true texts from false ones, and how many written texts are true?
(b) The paper's first table: a new model from the noisy pairs, with the captioner, the filter, both; equal steps.
(c) Written texts by nucleus sampling against beam search.
(d) A captioner and a filter tuned apart against one model tuned for both.

Every training and every table is made once; the same call resumes where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from openblip.bootstrap.job import NUCLEUS, CapFiltConfig, Output
from openblip.bootstrap.loop import BootstrapConfig, run_bootstrap
from openblip.bootstrap.places import Places
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.run import decide_again, run_capfilt
from openblip.checkpoints.store import open_model
from openblip.core.config import keep_settings
from openblip.data.source_config import SourceConfig
from openblip.data.world.dataset import WorldConfig, write_world
from openblip.data.world.noise import NoiseConfig
from openblip.experiments.judges.blip import measure_blip
from openblip.experiments.judges.capfilt_rows import judge_rows
from openblip.experiments.presets import LEARNING_RATE, scene_blip
from openblip.experiments.results import Metrics, Tables, kept, result_of
from openblip.experiments.stages import once
from openblip.generation.config import DecodeConfig
from openblip.tasks.config import RunConfig
from openblip.tasks.protocols import Adapter
from openblip.tasks.registry import adapt
from openblip.tasks.training import run_training

__all__ = ["QUICK", "VARIANTS", "CapFiltExperiment", "run_experiment"]

VARIANTS: dict[str, Policy] = {
    "captioner": Policy(threshold=0.0),
    "filter": Policy(origins=("web",)),
}
"""of the first table, besides "none" and "both", which are the loop's first and second model"""


@dataclass(frozen=True, kw_only=True)
class CapFiltExperiment:
    """Sizes of the experiment."""

    web_images: int = 3000
    """with one noisy web text each"""
    human_images: int = 2000
    """with three true captions each"""
    test_images: int = 300
    noise: NoiseConfig = field(
        default_factory=lambda: NoiseConfig(other_image=0.25, half_true=0.15, advertising=0.10)
    )
    size: str = "micro"
    steps: int = 500
    """of each pre-training"""
    tune_steps: int = 300
    """of the captioner, of the filter, and of the model tuned for both"""
    batch_size: int = 64
    learning_rate: float = LEARNING_RATE


QUICK = CapFiltExperiment(
    web_images=48, human_images=48, test_images=16, size="nano", steps=4, tune_steps=4, batch_size=16
)


def run_experiment(
    out: Path | str, config: CapFiltExperiment, *, seeds: int = 3, on_stage: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Run what is not done yet.

    Returns:
        as `experiments.results.result_of`

    Raises:
        UserError: the folder holds an experiment with other settings.
    """
    out = Path(out)
    keep_settings(out / "experiment.json", config, "an experiment")
    tell = on_stage or (lambda _: None)
    folders = [out / f"seed-{seed}" for seed in range(seeds)]
    found: list[Tables] = [
        once(folder / "metrics.json", partial(_one_seed, folder, config, seed, tell))
        for seed, folder in enumerate(folders)
    ]
    return result_of(config, found)


def _one_seed(out: Path, config: CapFiltExperiment, seed: int, tell: Callable[[str], None]) -> Tables:
    _make_world(out / "world", config, seed)

    def measure(adapter: Adapter) -> Metrics:
        test = SourceConfig(path=str(out / "world" / "test"), text_column="captions", meta_columns=("scene",))
        return kept(measure_blip(adapter, test, config.test_images))

    loop = _loop(out, config, seed)

    def say(name: str) -> None:
        tell(f"seed {seed}: {name}")

    both = run_bootstrap(loop, out / "loop", on_stage=say)
    models = {name: _measured(out / "loop" / name, measure) for name in ("first", "second")}
    table = {"none": models["first"]}
    clean = out / "loop" / "clean" / "0"
    for name, policy in VARIANTS.items():
        say(f"a model from {name} alone")
        decide_again(clean, Output(policy=policy), target=out / name / "set")
        source = SourceConfig(path=str(out / name / "set"), weight=loop.web[0].weight)
        run = replace(loop.pretrain, sources=(source, *loop.human))
        run_training(run, out / name / "run", resume=True, title=f"pre-training on {name}")
        table[name] = _measured(out / name / "run", measure)
    table["both"] = models["second"]

    say("beam search, and a tied model")
    captioner, judge = (str(out / "loop" / name / "model") for name in ("captioner", "filter"))
    tied = replace(loop.filter, task="pretraining", model=str(out / "loop" / "first" / "model"), sources=loop.human)
    run_training(tied, out / "tied" / "run", resume=True, title="tuning a tied model")
    one = str(out / "tied" / "run" / "model")
    beam = DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=NUCLEUS.max_new_tokens)
    judged = {"nucleus, apart": judge_rows(Places(clean).rows())}
    for name, writer, filtering, decode in (
        ("beam, apart", captioner, judge, beam),
        ("nucleus, tied", one, one, loop.decode),
    ):
        settings = CapFiltConfig(
            source=loop.web[0], captioner=writer, filter=filtering, decode=decode, device="cpu"
        )
        target = out / name.replace(", ", "-")
        run_capfilt(settings, target, Output(layout="none"))
        judged[name] = judge_rows(Places(target).rows())
    cleaned = {name: float(value) for name, value in both["clean"].items() if name != "seconds"}
    return {"models": table, "texts": judged, "clean": {"both": cleaned}}


def _make_world(out: Path, config: CapFiltExperiment, seed: int) -> None:
    worlds = {
        "web": WorldConfig(
            split="train", num_samples=config.web_images, text="web", noise=config.noise, seed=3 * seed + 1
        ),
        "human": WorldConfig(split="train", num_samples=config.human_images, seed=3 * seed + 2),
        "test": WorldConfig(split="test", num_samples=config.test_images, seed=seed),
    }
    for name, world in worlds.items():
        if not (out / name).exists():
            write_world(out / name, world)


def _loop(out: Path, config: CapFiltExperiment, seed: int) -> BootstrapConfig:
    world = out / "world"
    web = SourceConfig(path=str(world / "web"), meta_columns=("scene", "noise"), weight=1.0)
    human = SourceConfig(path=str(world / "human"), text_column="captions", weight=1.0)

    def run(steps: int) -> RunConfig:
        return scene_blip(
            (human,), size=config.size, steps=steps, batch_size=config.batch_size,
            learning_rate=config.learning_rate, seed=seed,
        )  # fmt: skip

    tune = run(config.tune_steps)
    return BootstrapConfig(
        web=(web,),
        human=(human,),
        pretrain=run(config.steps),
        captioner=replace(tune, task="captioning"),
        filter=replace(tune, task="retrieval"),
        decode=replace(NUCLEUS, max_new_tokens=36, seed=seed),
        batch_size=64,
    )


def _measured(run: Path, measure: Callable[[Adapter], Metrics]) -> Metrics:
    return measure(adapt(open_model(run / "model")))
