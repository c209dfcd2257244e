"""Results over seeds: means and standard deviations, and what they depend on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from openblip.core.config import to_dict
from openblip.core.runtime import machine, versions

__all__ = ["Metrics", "Tables", "cell", "described", "kept", "means", "result_of", "spread", "spread_of"]

Metrics = dict[str, float]
Tables = dict[str, dict[str, Metrics]]
"""table -> row -> measure"""
_OF_BLIP = (
    *("truth", "fact_accuracy", "coverage", "mean_facts"),
    *("t2i_recall@1", "t2i_recall_itm@1", "i2t_recall@1", "i2t_recall_itm@1", "t2i_recall@5", "itm_accuracy"),
)


def kept(measured: Mapping[str, Any]) -> Metrics:
    """Of what `judges.blip.measure_blip` measured, what the tables of an experiment hold."""
    return {name: float(measured[name]) for name in _OF_BLIP}


def result_of(config: Any, seeds: list[Tables], **more: Any) -> dict[str, Any]:
    """What an experiment found and what it depends on: {"config", "versions", "machine", "seeds", "mean"}.

    "mean" is {table: {row: {measure: [mean, standard deviation]}}}.
    """
    described = {"config": to_dict(config), "versions": versions(), "machine": machine()}
    return {**described, "seeds": seeds, **more, "mean": means(seeds)}


def described(name: str, command: str, seeds: int, settings: Any) -> dict[str, Any]:
    """What the result of an experiment on real data depends on."""
    return {
        "name": name,
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "seeds": seeds,
        "settings": to_dict(settings),
    }


def means(seeds: list[Tables]) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """Mean and standard deviation over the seeds that have a value; None for the standard deviation of one."""
    result: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for table, rows in seeds[0].items():
        for row, metrics in rows.items():
            for measure in metrics:
                values = [seed.get(table, {}).get(row, {}).get(measure) for seed in seeds]
                known = [value for value in values if value is not None]
                result.setdefault(table, {}).setdefault(row, {})[measure] = spread_of(known)
    return result


def spread_of(values: Sequence[float]) -> list[float | None]:
    """Mean and standard deviation; None for the standard deviation of one."""
    return [statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (0 of a single one), and the values themselves, rounded."""
    mean, deviation = spread_of(values)
    return {
        "mean": round(mean or 0.0, 5),
        "sd": round(deviation or 0.0, 5),
        "seeds": [round(value, 5) for value in values],
    }


def cell(found: dict[str, Any] | None) -> str:
    """What `spread` gave, as text: mean and standard deviation, "-" where nothing was measured."""
    return "-" if found is None else f"{found['mean']:.4g} ± {found['sd']:.2g}"
