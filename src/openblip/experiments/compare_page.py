"""The page that puts BLIP beside BLIP-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from openblip.experiments.compare import MODELS
from openblip.experiments.labels import labels, unit
from openblip.experiments.page import details, measures_table, over_seeds
from openblip.report.content import Chart, Charts, Column, Report, Section, Table, Text

__all__ = ["compare_page"]

_COST = labels(
    *("trained_parameters", "parameters", "gflops", "cached_gflops"),
    *("seconds", "cached_seconds", "peak_mb", "cached_peak_mb"),
)
_ALL = {name: name for name in MODELS}
_WRITERS = {name: name for name in MODELS if name != "BLIP-2, stage 1"}
_WRITTEN = labels("truth", "fact_accuracy", "mean_facts", "coverage", "novel_truth")
_USED = labels("t2i_recall_itm@1", "itm_accuracy", "answers_all", "novel_answers_all")


def compare_page(result: dict[str, Any]) -> Report:
    """The report of `experiments.compare.compare_models`'s result."""
    mean, config = result["mean"], result["config"]
    steps = {"BLIP-2, stage 2": config["stage2_steps"], "BLIP-2, stage 1": config["stage1_steps"]}
    return Report(
        title="BLIP and BLIP-2 on the same images",
        subtitle=f"a scene world where the truth of every text is known; {len(result['seeds'])} seeds",
        summary=[
            f"Both begin from one vision tower and see {config['images']:,} images with true captions. BLIP "
            f"trains all of it for {sum(steps.values())} steps; BLIP-2 leaves the tower frozen, with "
            f"{steps['BLIP-2, stage 1']} steps of stage 1 and {steps['BLIP-2, stage 2']} of stage 2."
        ],
        sections=[
            Section(title="What a step costs", blocks=[_cost_table(mean["cost"], config["batch_size"])]),
            Section(
                title="What comes of it",
                blocks=[
                    measures_table("Captions", mean["models"], _WRITERS, _WRITTEN),
                    measures_table("Retrieval and zero-shot answers", mean["models"], _ALL, _USED),
                    Text(paragraphs=["BLIP is asked by letting it choose among the usual answers to a kind of "
                                     "question, as a continuation of the question, which it was never trained for; "
                                     "BLIP-2 writes its answer freely."], tone="note"),
                    Charts(charts=[_chart(result)]),
                ],
            ),
            Section(title="How it was made", blocks=[details(result)]),
        ],
    )  # fmt: skip


def _cost_table(costs: dict[str, Any], batch_size: int) -> Table:
    rows: list[Any] = [[name, *(costs[name].get(measure, [None])[0] for measure in _COST)] for name in MODELS]
    columns = [Column(name=""), *(Column(name=label, unit=unit(name)) for name, label in _COST.items())]
    note = "Forward, backward and the optimiser; memory is by how much a process grows that does nothing else."
    return Table(title=f"One step, {batch_size} images", columns=columns, rows=rows, note=note)


def _chart(result: dict[str, Any]) -> Chart:
    """Captions true over the operations spent on training, each model's own with the stage before it."""
    costs, config = result["mean"]["cost"], result["config"]

    def flops(name: str, measure: str = "gflops") -> float:
        return float(costs[name][measure][0])

    before = config["stage1_steps"] * flops("BLIP-2, stage 1", "cached_gflops") / 1e3
    series = []
    for name in result["curves"][0]:
        spent, offset = (flops(name), 0.0) if name == "BLIP" else (flops(name, "cached_gflops"), before)
        runs = [curves[name] for curves in result["curves"]]
        line = over_seeds(runs, "truth", name=name)
        series.append(replace(line, x=[offset + step * spent / 1e3 for step in line.x]))
    return Chart(
        title="captions that are true",
        series=series,
        x_label="TFLOPs of training; BLIP-2 from cached features, stage 1 before stage 2",
        unit="fraction",
    )
