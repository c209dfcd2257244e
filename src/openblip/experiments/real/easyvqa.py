"""easyvqa: a small BLIP learns to answer 38,575 questions about 4,000 images, measured on 1,000 others.

    openblip experiments easyvqa

Each seed is a run of `openblip train small-vqa` from the model that the demo pre-trained (`openblip demo`), or from
random weights (`--set start=micro`). Optimiser and rate were chosen on a tenth of the training images, left out
of training for that (`--set held_out=true`); the number of steps was not tuned. `test` is measured with the weights
at the end. A finished seed is not run again, one that was stopped resumes.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openblip.checkpoints.store import open_model
from openblip.core.config import keep_settings, to_dict
from openblip.core.files import write_text
from openblip.core.text import read_json
from openblip.data.sample import Batch
from openblip.data.source_config import SourceConfig
from openblip.data.sources.questions import open_questions
from openblip.experiments.presets import LEARNING_RATE, short_train
from openblip.experiments.results import described, spread
from openblip.experiments.stages import once
from openblip.recipes.small import small_vqa
from openblip.tasks.answering import evaluate_answers
from openblip.tasks.config import RunConfig
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.registry import adapt
from openblip.tasks.training import run_training

__all__ = ["QUICK", "SETTINGS", "Settings", "run", "run_config", "run_seed", "table", "write_rows"]

KINDS = {"yes": "yes or no", "no": "yes or no", "circle": "shape", "rectangle": "shape", "triangle": "shape"}
"""by the answer; the others are colours"""
_HELD_OUT = 10
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the experiment depends on but the data and the seed."""

    start: str = "runs/demo/pretrain/model"
    """a pre-trained model's folder (this one is made by `openblip demo`), or a size to start from scratch"""
    steps: int = 1200
    batch_size: int = 32
    """images, each with all its questions (about ten)"""
    learning_rate: float = LEARNING_RATE
    held_out: bool = False
    """leave the held-out tenth out of training and measure on it, not on `test`"""


SETTINGS = {"easyvqa": Settings()}
QUICK = Settings(start="nano", steps=4, batch_size=4)
"""to see that everything runs, on a handful of images"""


def write_rows(data: Path, out: Path) -> None:
    """The questions of easyvqa as JSONL: `image`, `question`, `answer`, `split`, one on each line.

    Its own questions.json is a list of [question, answer, number of the image] for each of train/ and test/.
    """
    lines = []
    for folder in ("train", "test"):
        for question, answer, number in read_json(data / folder / "questions.json"):
            split = "val" if folder == "train" and number % _HELD_OUT == _HELD_OUT - 1 else folder
            row = {"image": f"{folder}/images/{number}.png", "question": question, "answer": answer, "split": split}
            lines.append(json.dumps(row) + "\n")
    write_text(out, "".join(lines))


def sources(data: Path, out: Path, settings: Settings, *, train: bool) -> tuple[SourceConfig, ...]:
    """What is trained or measured on."""
    whole = SourceConfig(path=str(out / "easyvqa.jsonl"), name="easyvqa", image_root=str(data))
    splits = ("train",) if settings.held_out else ("train", "val")
    if not train:
        splits = ("val",) if settings.held_out else ("test",)
    return tuple(replace(whole, split=split) for split in splits)


def run_config(data: Path, out: Path, seed: int, settings: Settings) -> RunConfig:
    """One seed as a training run: what `openblip train small-vqa` takes for small models, and the settings."""
    recipe = small_vqa(("easyvqa.jsonl",), model=settings.start, steps=settings.steps)
    return replace(
        recipe,
        sources=sources(data, out, settings, train=True),
        batch_size=settings.batch_size,
        num_workers=0,
        train=short_train(
            settings.steps,
            learning_rate=settings.learning_rate,
            min_learning_rate=1e-6,
            warmup_learning_rate=1e-6,
            seed=seed,
            checkpoint_every=0,
            trackers=(),
        ),
    )


def run_seed(data: Path, out: Path, seed: int, settings: Settings, *, show: bool = True) -> dict[str, Any]:
    """Train and measure one seed in the folder `out`; what was finished there is taken up.

    Returns:
        "steps", "seconds"; "test": accuracies; "answered": one record for each question.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    folder = out / f"seed-{seed}"

    def make() -> dict[str, Any]:
        config = run_config(data, out, seed, settings)
        trained = run_training(config, folder, resume=True, title=f"easyvqa, seed {seed}", show=show)
        metrics, records = measure(folder / "model", config, sources(data, out, settings, train=False))
        found = {"steps": trained.steps, "seconds": round(trained.seconds, 1), "test": metrics}
        return {**found, "answered": records}

    result: dict[str, Any] = once(folder / "measured.json", make)
    return result


def measure(
    model: Path, config: RunConfig, on: Sequence[SourceConfig]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Accuracy by open generation and by ranking, by kind of question too, and on another image."""
    began = time.perf_counter()
    adapter = adapt(open_model(model))
    candidates = adapter.info["answers"]

    def answered(batches: Iterable[Batch]) -> list[dict[str, Any]]:
        return evaluate_answers(
            adapter.need("answer"), batches, config.decode,
            candidates=candidates, max_length=config.max_length, max_rows=256,
        )[1]  # fmt: skip

    def batches() -> Iterator[Batch]:
        opened = [open_questions(source) for source in on]
        count = sum(len(source) for source in opened)
        return evaluation_batches(opened, adapter.image_size, samples=count, clean="none")

    records = answered(batches())
    blind = answered(replace(batch, images=batch.images.roll(1, dims=0)) for batch in batches())
    metrics: dict[str, float] = {"questions": float(len(records))}
    for way in ("generated", "ranked"):
        metrics[f"accuracy_{way}"] = _mean(records, way)
        for kind in ("yes or no", "shape", "colour"):
            own = [record for record in records if _kind(record) == kind]
            if own:
                metrics[f"accuracy_{way}, {kind}"] = _mean(own, way)
        metrics[f"accuracy_{way}, another image"] = _mean(blind, way)
    return {**metrics, "measuring_seconds": round(time.perf_counter() - began, 1)}, records


def _mean(records: Sequence[dict[str, Any]], way: str) -> float:
    return sum(float(record[f"accuracy_{way}"]) for record in records) / len(records)


def _kind(record: dict[str, Any]) -> str:
    return KINDS.get(record["answers"][0], "colour")


def _guessing(data: Path) -> dict[str, float]:
    """Accuracy on `test` of who always gives the most frequent answer, and of who knows the question alone."""
    asked = {
        folder: [tuple(row[:2]) for row in read_json(data / folder / "questions.json")]
        for folder in ("train", "test")
    }
    usual = Counter(answer for _, answer in asked["train"]).most_common(1)[0][0]
    by_question: dict[str, Counter[str]] = {}
    for question, answer in asked["train"]:
        by_question.setdefault(question, Counter())[answer] += 1
    best = {question: counts.most_common(1)[0][0] for question, counts in by_question.items()}
    test = asked["test"]
    return {
        "always the most frequent answer": sum(answer == usual for _, answer in test) / len(test),
        "the question's most frequent answer": sum(best.get(q, usual) == answer for q, answer in test) / len(test),
    }


def run(
    name: str, data: Path, out: Path, seeds: int, settings: Settings, *, command: str = "", show: bool = True
) -> dict[str, Any]:
    """Run what is not finished of every seed in `out`, and sum up.

    Returns:
        "command", "settings", "run" (the whole configuration), "guessing", "machine", "versions"; "test": each
        number as `spread` gives it; "steps", "seconds" of training; "answers": what seed 0 said, evenly spread over
        `test`, and of what it got wrong.
    """
    out.mkdir(parents=True, exist_ok=True)
    keep_settings(out / "settings.json", settings, "a run")
    write_rows(data, out / "easyvqa.jsonl")
    found = [run_seed(data, out, seed, settings, show=show) for seed in range(seeds)]
    records = found[0]["answered"]
    wrong = [record for record in records if record["accuracy_generated"] < 1 or record["accuracy_ranked"] < 1]
    names = [name for name in found[0]["test"] if name != "measuring_seconds"]
    return {
        **described(name, command, seeds, settings),
        # The folders are placeholders: where the data lay says nothing.
        "run": to_dict(run_config(Path("DATA/easyvqa"), Path("OUT"), 0, settings)),
        "guessing": _guessing(data),
        "test": {name: spread([result["test"][name] for result in found]) for name in names},
        "steps": [result["steps"] for result in found],
        "seconds": [result["seconds"] for result in found],
        "answers": {"evenly spread": _shown(records), "wrong": _shown(wrong)},
    }


def _shown(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(record) for record in records[:: max(1, len(records) // _SHOWN)][:_SHOWN]]


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [f"{result['name']}, {result['seeds']} seeds: mean, standard deviation, each seed"]
    for name, found in result["test"].items():
        each = "  ".join(f"{value:.4f}" for value in found["seeds"])
        lines.append(f"{name:40}{found['mean']:>10.4f} ± {found['sd']:<8.2g}{each}")
    lines += [f"{name:40}{value:>10.4f}" for name, value in result["guessing"].items()]
    lines.append(f"{'seconds of training':40}" + "  ".join(str(value) for value in result["seconds"]))
    return "\n".join(lines)
