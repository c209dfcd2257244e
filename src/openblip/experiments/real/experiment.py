"""Several seeds of an experiment on real data, put together: means, spreads, examples, and how it was run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openblip.core.config import to_dict
from openblip.experiments.real.measures import DECODING, chance
from openblip.experiments.real.openstax import STAGES, Settings, images_read, run_config, run_seed, unseen
from openblip.experiments.results import cell, described, spread

__all__ = ["run", "table"]

_SHOWN = 12
_QUOTED = (
    *("t2i_recall@1", "t2i_recall@10", "t2i_recall_itm@1", "t2i_recall_itm@10"),
    *("i2t_recall@1", "i2t_recall@10", "i2t_recall_itm@1", "i2t_recall_itm@10"),
    *("itc_auc", "itc_auc_same_book", "itm_auc", "itm_auc_same_book"),
    *("perplexity_right", "perplexity_wrong", "prefers_right", "prefers_right_same_book"),
    *("CIDEr_beam", "CIDEr_beam_wrong", "CIDEr_nucleus", "CIDEr_nucleus_wrong"),
)


def run(
    name: str, data: Path, out: Path, seeds: int, settings: Settings, *, command: str = "", show: bool = True
) -> dict[str, Any]:
    """Run what is not finished of every seed in `out`, and sum up.

    Returns:
        "command", "settings", "runs" (each stage's whole configuration), "data", "chance", "machine", "versions";
        "stages": for each, its metrics on `test` as `spread` gives them; "captions": of seed 0, images evenly
        spread over `test`, and those of the highest CIDEr.
    """
    found = [run_seed(data, out / f"seed-{seed}", seed, settings, show=show) for seed in range(seeds)]
    stages = {stage: _stage([result["stages"][stage] for result in found]) for stage in STAGES}
    captions: list[dict[str, Any]] = found[0]["captions"]
    best = sorted(captions, key=lambda record: -record["CIDEr_beam"])
    # The folders are placeholders: where the data lay says nothing.
    runs = {
        stage: to_dict(run_config(stage, Path("DATA/openstax"), Path("OUT/seed-0"), 0, settings))
        for stage in STAGES[1:]
    }
    return {
        **described(name, command, seeds, settings),
        "runs": runs,
        "decoding": {how: to_dict(config) for how, config in DECODING.items()},
        "data": images_read(data),
        "chance": chance(unseen(data, "test", settings.image_size).books),
        "stages": stages,
        "captions": {
            "evenly spread": captions[:: max(1, len(captions) // _SHOWN)][:_SHOWN],
            "highest CIDEr": best[:_SHOWN],
        },
    }


def _stage(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One stage over the seeds."""
    names = [name for name in results[0]["test"] if name != "measuring_seconds"]
    metrics = {name: spread([result["test"][name] for result in results]) for name in names}
    trained = [name for name in ("steps", "epochs", "seconds", "best_on_val") if name in results[0]]
    return {"test": metrics, **{name: [result[name] for result in results] for name in trained}}


def table(result: dict[str, Any]) -> str:
    """The result for a reader."""
    lines = [f"{result['name']}, {result['seeds']} seeds, on test: mean and standard deviation"]
    lines.append(f"{'':24}" + "".join(f"{stage:>18}" for stage in result["stages"]))
    for name in _QUOTED:
        cells = "".join(f"{cell(stage['test'].get(name)):>18}" for stage in result["stages"].values())
        lines.append(f"{name:22}{cells}")
    return "\n".join(lines)
