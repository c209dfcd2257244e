"""What every experiment needs: one folder for one set of settings, means over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openblip.core.config import differences, to_dict
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.runtime import machine, versions
from openblip.core.text import read_json
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.data.sources.base import SourceConfig
from openblip.data.transforms import ImageTransformConfig
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.truth import caption_report
from openblip.generation.types import DecodeConfig
from openblip.models.blip import Blip
from openblip.models.pixels import normalize
from openblip.recipes import small_pretrain
from openblip.tasks.caption import write_captions
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.run import RunConfig, evaluation_batches

__all__ = [
    "Numbers",
    "Tables",
    "means",
    "measure_blip",
    "once",
    "result_of",
    "same_experiment",
    "spread_of",
    "world_pretraining",
]

Numbers = dict[str, float]
Tables = dict[str, dict[str, Numbers]]
"""table -> row -> measure"""
_GREEDY = DecodeConfig(max_new_tokens=36)


def same_experiment(out: Path, config: Any) -> None:
    """Write down the settings of an experiment that begins in `out`, or refuse to go on with others.

    Raises:
        UserError: the folder holds an experiment with other settings.
    """
    path, settings = out / "experiment.json", to_dict(config)
    if not path.exists():
        write_json(path, settings)
    elif changed := differences(read_json(path), settings):
        raise UserError(f"{out} holds an experiment with other settings ({changed[0]}); choose another folder")


def once(path: Path, make: Callable[[], Numbers]) -> Numbers:
    """The numbers in the file `path`, which are made and written the first time."""
    if not path.exists():
        write_json(path, make())
    found: Numbers = read_json(path)
    return found


def result_of(config: Any, seeds: list[Tables], **more: Any) -> dict[str, Any]:
    """What an experiment found and what it depends on: {"config", "versions", "machine", "seeds", "mean"}.

    "mean" is {table: {row: {measure: [mean, deviation]}}}.
    """
    told = {"config": to_dict(config), "versions": versions(), "machine": machine()}
    return {**told, "seeds": seeds, **more, "mean": means(seeds)}


def means(seeds: list[Tables]) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """Mean and standard deviation over the seeds that have a number; None for the deviation of one."""
    result: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for table, rows in seeds[0].items():
        for row, numbers in rows.items():
            for measure in numbers:
                values = [seed.get(table, {}).get(row, {}).get(measure) for seed in seeds]
                known = [value for value in values if value is not None]
                result.setdefault(table, {}).setdefault(row, {})[measure] = spread_of(known)
    return result


def spread_of(values: Sequence[float]) -> list[float | None]:
    """Mean and standard deviation; None for the deviation of one."""
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def world_pretraining(
    source: SourceConfig, *, size: str, steps: int, batch_size: int, learning_rate: float, seed: int
) -> RunConfig:
    """A small BLIP from scratch in the world, looked at when it is done and not before."""
    base = small_pretrain((source.path,), size=size, steps=steps)
    train = replace(
        base.train,
        learning_rate=learning_rate,
        min_learning_rate=1e-5,
        warmup_steps=min(base.train.warmup_steps, steps // 5),
        seed=seed,
        evaluate_every_steps=0,
        checkpoint_every=max(100, steps // 4),
        keep_checkpoints=1,
    )
    # "To the left of" is false in a mirror, counts are false in a crop.
    transform = ImageTransformConfig(crop_scale=None, flip=False, ops=())
    return replace(
        base, sources=(source,), train=train, batch_size=batch_size, vocab_size=1000, transform=transform
    )


def measure_blip(model: Blip, tokenizer: TextTokenizer, source: SourceConfig, samples: int) -> Numbers:
    """What a pre-trained BLIP can do on unseen pictures of the world, as it is."""

    def batches() -> Iterator[Batch]:
        yield from evaluation_batches((source,), model.config.vision.image_size, samples=samples, clean="simplify")

    captions, scenes = [], []
    for batch in batches():
        memory = model.remember(model.encode_image(normalize(batch.images)))
        captions += [written[0].text for written in write_captions(model, tokenizer, memory, _GREEDY)]
        scenes += [scene_from_meta(meta) for meta in batch.meta]
    report = caption_report(captions, scenes)
    found = evaluate_retrieval(model, tokenizer, batches(), rerank_k=16, max_length=40)
    kept = ("t2i_recall@1", "t2i_recall_itm@1", "i2t_recall@1", "i2t_recall_itm@1", "t2i_recall@5", "itm_accuracy")
    return {
        "truth": float(report["truth"]),
        "fact_accuracy": float(report["fact_accuracy"]),
        "coverage": float(report["coverage"]),
        "mean_facts": float(report["mean_facts"]),
        **{name: found[name] for name in kept},
    }
