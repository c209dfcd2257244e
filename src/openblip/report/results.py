"""Tables as the papers have them, of many results: the models as rows, published figures beside them."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.data.cards import CARDS
from openblip.data.cards.targets import MEASURES, Published, published_figures
from openblip.metrics.results import Figure, FoundResults, Result
from openblip.report.content import Cell, Column, Report, Section, Table, Text

__all__ = ["results_report", "results_tables"]

_SHOWN = {"text": "TR@1", "image recall@1": "IR@1"}
"""shorter names of measures"""
_OTHER = (
    *("i2t_recall@1", "t2i_recall@1", "itm_accuracy", "BLEU-4", "CIDEr", "accuracy", "accuracy_ranked"),
    *("accuracy_generated", "consistency", "top1", "top5"),
)
"""metrics that are shown where a dataset has no published figures"""
_FAMILIES = {"blip": "BLIP ", "blip2": "BLIP-2 "}


def results_tables(results: Sequence[Result]) -> list[Table]:
    """A table for each task on each split, in the order in which they come."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.dataset, result.split, result.task), []).append(result)
    return [_table(*key, own) for key, own in groups.items()]


def results_report(found: FoundResults, title: str) -> Report:
    """The tables as a page; files that were skipped are named."""
    sections = [Section(title=table.title, blocks=[_untitled(table)]) for table in results_tables(found.results)]
    if found.skipped:
        lines = [f"`{name}` {reason}" for name, reason in found.skipped.items()]
        skipped = Text(paragraphs=lines, tone="warning")
        sections.append(Section(title=f"Files that were skipped: {len(lines)}", blocks=[skipped]))
    count = len(found.results)
    return Report(title=title, subtitle=f"{count} evaluation{'s' * (count != 1)}", sections=sections)


def _untitled(table: Table) -> Table:
    return Table(columns=table.columns, rows=table.rows, note=table.note)


def _table(dataset: str, split: str, task: str, results: Sequence[Result]) -> Table:
    card = CARDS.get(dataset)
    published = published_figures(card, split) if card is not None else []
    measures = [name for name in MEASURES if any(name in row.figures for row in published)]
    measures = [name for name in measures if any(_metric(name, result) for result in results)]
    published = [row for row in published if any(name in row.figures for name in measures)]
    nearest = {family: _best(published, prefix, measures) for family, prefix in _FAMILIES.items()}
    rows: list[list[Cell | float | str | None]] = []
    for result in results:
        beside = nearest.get(result.family)
        rows.append([result.model, *_cells(result, measures, beside), f"{result.samples:,}", _status(result)])
    rows += [
        [row.model, *(row.figures.get(name) for name in measures), "", row.remark or "published"]
        for row in published
    ]
    if not measures:
        return _plain(dataset, split, task, results)
    columns = [Column(name="model", align="left"), *(Column(name=_SHOWN.get(n, n)) for n in measures)]
    columns += [Column(name="samples", align="right"), Column(name="", align="left")]
    families = {result.family for result in results}
    compared = sorted({row.model for family, row in nearest.items() if row is not None and family in families})
    note = f"In parentheses: difference from the published {' or '.join(compared)}. " if compared else ""
    note += f"Sources: {'; '.join(dict.fromkeys(row.source for row in published))}."
    return Table(title=_title(dataset, split, task), columns=columns, rows=rows, note=note)


def _plain(dataset: str, split: str, task: str, results: Sequence[Result]) -> Table:
    """Where nothing is published: the metrics that there are."""
    names = [name for name in _OTHER if any(name in result.metrics for result in results)]
    names = names or sorted({name for result in results for name in result.metrics})[:5]
    rows = [
        [r.model, *(_cell(r.metrics.get(name)) for name in names), f"{r.samples:,}", _status(r)] for r in results
    ]
    columns = [Column(name="model", align="left"), *(Column(name=name) for name in names)]
    columns += [Column(name="samples", align="right"), Column(name="", align="left")]
    return Table(title=_title(dataset, split, task), columns=columns, rows=rows)


def _title(dataset: str, split: str, task: str) -> str:
    return f"{dataset}:{split}, {task}" if split else f"{dataset}, {task}"


def _best(published: Sequence[Published], prefix: str, measures: Sequence[str]) -> Published | None:
    """The published row of a family that is best in the last measure it has."""
    own = [row for row in published if row.model.startswith(prefix) and any(n in row.figures for n in measures)]
    return max(own, key=lambda row: [row.figures[n] for n in measures if n in row.figures][-1], default=None)


def _metric(measure: str, result: Result) -> str:
    """The metric of a result that a published measure is compared with, "" for none."""
    return next((name for name in MEASURES[measure] if name in result.metrics), "")


def _cells(result: Result, measures: Sequence[str], beside: Published | None) -> list[Cell]:
    cells = []
    for measure in measures:
        cell = _cell(result.metrics.get(_metric(measure, result)))
        reference = beside.figures.get(measure) if beside is not None else None
        if reference is not None and isinstance(cell.value, float):
            cell = Cell(value=cell.value, spread=cell.spread, note=f"({cell.value - reference:+.1f})")
        cells.append(cell)
    return cells


def _cell(figure: Figure | None) -> Cell:
    """In percent, as the papers have it."""
    if figure is None:
        return Cell(value=None)
    spread = None if figure.spread is None else 100 * figure.spread
    return Cell(value=round(100 * figure.value, 2), spread=spread)


def _status(result: Result) -> str:
    return "whole split" if result.official else f"part: {result.partial}"
