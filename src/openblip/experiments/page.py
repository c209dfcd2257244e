"""The page about an experiment, here that on CapFilt: tables with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openblip.data.world.noise import NOISE_KINDS
from openblip.experiments.labels import labels, unit
from openblip.experiments.results import spread_of
from openblip.report.content import Cell, Column, Details, Fact, Report, Section, Series, Table

__all__ = ["capfilt_page", "details", "measures_table", "over_seeds"]

_MODELS = {"none": "no bootstrapping", "captioner": "captioner alone", "filter": "filter alone", "both": "CapFilt"}
_TEXTS = {
    "nucleus, apart": "nucleus, tuned apart",
    "beam, apart": "beam search, tuned apart",
    "nucleus, tied": "nucleus, one model tuned for both",
}
_MODEL = labels(
    *("truth", "fact_accuracy", "mean_facts", "coverage"),
    *("t2i_recall@1", "t2i_recall_itm@1", "i2t_recall_itm@1", "itm_accuracy"),
)
_JUDGED = labels(
    *("true_web", "precision_web", "recall_web", "auc_web"),
    *("auc_half_true", "itm_of_true_web", "itm_of_false_web"),
)
_WRITTEN = labels(
    "true_synthetic", "kept_synthetic", "precision_synthetic", "recall_synthetic", "distinct_synthetic"
)
_WEIGHED = labels("auc_synthetic", "itm_of_true_synthetic", "itm_of_false_synthetic", "auc_log_prob_synthetic")


def capfilt_page(result: dict[str, Any]) -> Report:
    """The report of `experiments.capfilt.run_experiment`'s result."""
    seeds, mean = len(result["seeds"]), result["mean"]
    kinds = {f"kept_{kind}": kind for kind in NOISE_KINDS}
    return Report(
        title="CapFilt in a scene world",
        subtitle=f"what the BLIP paper claims, where the truth of every text is known; {seeds} seeds",
        sections=[
            Section(
                title="New models from cleaned pairs",
                intro="The paper's first table at small scale: four models, pre-trained anew for as many steps.",
                blocks=[measures_table("", mean["models"], _MODELS, _MODEL)],
            ),
            Section(
                title="The filter as a judge of truth",
                blocks=[
                    measures_table("Texts from the web", mean["texts"], _TEXTS, _JUDGED),
                    measures_table("Kept, by what was wrong with them", mean["texts"], _TEXTS, kinds),
                ],
            ),
            Section(
                title="What the captioner writes",
                blocks=[
                    measures_table("True, and kept", mean["texts"], _TEXTS, _WRITTEN),
                    measures_table("What tells the true ones", mean["texts"], _TEXTS, _WEIGHED),
                ],
            ),
            Section(title="How it was made", blocks=[details(result)]),
        ],
    )


def measures_table(title: str, rows: dict[str, Any], names: dict[str, str], measures: dict[str, str]) -> Table:
    """A row for each of `names` with what `rows` ("mean" of a result) says of `measures`."""
    cells: list[list[Cell | float | str | None]] = []
    for name, label in names.items():
        row: list[Cell | float | str | None] = [label]
        for measure in measures:
            value, spread = rows[name].get(measure, (None, None))
            row.append(Cell(value=value, spread=spread))
        cells.append(row)
    columns = [Column(name=""), *(Column(name=label, unit=unit(name)) for name, label in measures.items())]
    return Table(title=title, columns=columns, rows=cells)


def over_seeds(runs: Sequence[dict[str, list[float]]], measure: str, **style: Any) -> Series:
    """A line over the steps of a training: the mean over the seeds, with its standard deviation.

    Args:
        runs: of each seed, "step" and the measure at it.
        style: further fields of `Series`.
    """
    points = [spread_of(values) for values in zip(*(run[measure] for run in runs), strict=False)]
    return Series(
        x=runs[0]["step"][: len(points)],
        y=[mean for mean, _ in points],
        spread=[spread or 0.0 for _, spread in points],
        **style,
    )


def details(result: dict[str, Any]) -> Details:
    """The settings of an experiment."""
    facts = [Fact(name=name, value=str(value)) for name, value in result["config"].items()]
    return Details(title="Settings", facts=facts)
