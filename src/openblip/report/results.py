"""Tables as the papers have them, of many results: the models as rows, published figures beside them."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.core.text import counted
from openblip.data.cards import CARDS
from openblip.data.cards.targets import MEASURES, Published, compared_metrics, published_figures, why_unlike
from openblip.metrics.results import NO_SPLIT, Figure, FoundResults, Result, joined_runs
from openblip.report.content import Cell, Column, Report, Section, Table, Text

__all__ = ["results_report", "results_tables"]

_BY_ITC = {"i2t_recall@1": "TR@1 by ITC", "t2i_recall@1": "IR@1 by ITC"}
"""recall without ITM's re-ranking, which the published figures have"""
_SHOWN = {
    "text": "TR@1",
    "image recall@1": "IR@1",
    "i2t_recall_itm@1": "TR@1",
    "t2i_recall_itm@1": "IR@1",
    "recall@1": "R@1",
    "@5": "R@5",
    "@10": "R@10",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "mean_reciprocal_rank": "MRR",
    "mean_rank": "mean rank",
    "itm_accuracy": "ITM accuracy",
    "accuracy_ranked": "accuracy ranked",
    "accuracy_generated": "accuracy generated",
    **_BY_ITC,
}
"""shorter names of measures"""
_OTHER = (
    *("i2t_recall_itm@1", "t2i_recall_itm@1", "i2t_recall@1", "t2i_recall@1", "itm_accuracy", "BLEU-4", "CIDEr"),
    *("accuracy", "accuracy_ranked", "accuracy_generated", "consistency", "top1", "top5"),
    *("mean_reciprocal_rank", "recall@1", "recall@5", "recall@10", "mean_rank", "ndcg"),
)
"""metrics that are shown where a dataset has no published figures"""
_NO_SHARES = {"mean rank", "mean_rank", "median_rank", "perplexity", "itg_perplexity"}
"""shown as they are, not in percent"""
_FAMILIES = {"blip": "BLIP ", "blip2": "BLIP-2 "}


def results_tables(results: Sequence[Result]) -> list[Table]:
    """A table for each task on each split, in the order in which they come; runs of several seeds are one row."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in joined_runs(results):
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
    if not measures:
        return _plain(dataset, split, task, results)
    nearest = {family: _best(published, prefix, measures) for family, prefix in _FAMILIES.items()}
    digits = {name: max(len(row.figures.get(name, "").partition(".")[2]) for row in published) for name in measures}
    by_itc = [name for name in _BY_ITC if any(_lacks_itm(name, result) for result in results)]
    rows: list[list[Cell | float | str | None]] = []
    compared: set[str] = set()
    unlike: dict[str, None] = {}
    for result in results:
        beside = nearest.get(result.family)
        cells: list[Cell] = []
        for name in measures:
            figure = result.metrics.get(_metric(name, result))
            reference = beside.figures.get(name) if beside is not None and figure is not None else None
            if reference is not None and beside is not None:
                if why := why_unlike(dataset, _metric(name, result), result.family):
                    reference, unlike[why] = None, None
                else:
                    compared.add(beside.model)
            cells.append(_cell(figure, digits[name], reference, scale=_scale(name)))
        cells += [_cell(result.metrics.get(name)) for name in by_itc]
        rows.append([result.model, *cells, _samples(result)])
    for row in published:
        model = f"{row.model}, {row.remark}" if row.remark else row.model
        rows.append([model, *(row.figures.get(name) for name in (*measures, *by_itc)), "published"])
    notes = [f"In parentheses: difference from the published {' or '.join(sorted(compared))}."] if compared else []
    notes += [f"No difference: {why}." for why in unlike]
    notes += [*_parts(results), f"Sources: {'; '.join(dict.fromkeys(row.source for row in published))}."]
    columns = [*(_heading(dataset, name) for name in measures), *(_SHOWN[name] for name in by_itc)]
    return _made(_title(dataset, split, task), columns, rows, " ".join(notes))


def _made(title: str, measures: list[str], rows: Sequence[Sequence[Cell | float | str | None]], note: str) -> Table:
    columns = [Column(name="model"), *(Column(name=name, align="right") for name in (*measures, "samples"))]
    return Table(title=title, columns=columns, rows=rows, note=note)


def _plain(dataset: str, split: str, task: str, results: Sequence[Result]) -> Table:
    """Where nothing is published: the metrics that there are."""
    names = [name for name in _OTHER if any(name in result.metrics for result in results)]
    names = names or sorted({name for result in results for name in result.metrics})[:5]
    rows: list[list[Cell | float | str | None]] = [
        [
            result.model,
            *(_cell(result.metrics.get(name), scale=_scale(name)) for name in names),
            _samples(result),
        ]
        for result in results
    ]
    shown = [_SHOWN.get(name, name) for name in names]
    return _made(_title(dataset, split, task), shown, rows, " ".join(_parts(results)))


def _title(dataset: str, split: str, task: str) -> str:
    return f"{dataset}:{split}, {task}" if split else f"{dataset}, {task}"


def _best(published: Sequence[Published], prefix: str, measures: Sequence[str]) -> Published | None:
    """The published row of a family that is best in the last measure it has."""
    named = [row for row in published if f"{row.model} ".startswith(prefix)]
    own = [row for row in named if any(n in row.figures for n in measures)]
    return max(own, key=lambda row: float([row.figures[n] for n in measures if n in row.figures][-1]), default=None)


def _metric(measure: str, result: Result) -> str:
    """The metric of a result that a published measure is compared with, "" for none."""
    return next((name for name in compared_metrics(result.dataset, measure) if name in result.metrics), "")


def _heading(dataset: str, measure: str) -> str:
    """Of a column; a protocol of its own is named."""
    metrics = compared_metrics(dataset, measure)
    protocol = "" if metrics == MEASURES[measure] else metrics[0].partition(", ")[2]
    return ", ".join(part for part in (_SHOWN.get(measure, measure), protocol) if part)


def _lacks_itm(name: str, result: Result) -> bool:
    """Whether a result has a recall by ITC and not the one after re-ranking."""
    return name in result.metrics and name.replace("@", "_itm@") not in result.metrics


def _scale(name: str) -> float:
    """What a measure is multiplied with: in percent, as the papers have it, unless it is no share."""
    return 1.0 if name in _NO_SHARES else 100.0


def _cell(figure: Figure | None, digits: int = 1, reference: str | None = None, *, scale: float = 100.0) -> Cell:
    if figure is None:
        return Cell(value=None)
    value, spread = scale * figure.value, ""
    if figure.spread is not None:
        spread = f" ± {scale * figure.spread:.{digits}f}"
    difference = 0.0 if reference is None else round(value - float(reference), digits) + 0.0  # no -0.0
    note = "" if reference is None else f"({difference:+.{digits}f})"
    return Cell(value=f"{value:.{digits}f}{spread}", note=note)


def _samples(result: Result) -> str:
    noun = "statement" if result.task == "nlvr" else "question"
    asked = f" with {counted(result.questions, noun)}" if result.questions else ""
    return f"{result.samples:,}{asked}" + ("" if result.official or result.partial == NO_SPLIT else ", see note")


def _parts(results: Sequence[Result]) -> list[str]:
    """Why figures are not those of a whole published split, a sentence for each reason."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        if not result.official:
            reasons.setdefault(result.partial, []).append(result.model)
    named = {reason: ", ".join(dict.fromkeys(models)) for reason, models in reasons.items()}
    return [
        f"These data are no split of a published dataset, so no published figures stand beside {models}."
        if reason == NO_SPLIT
        else f"Not comparable with published figures: {models} ({reason})."
        for reason, models in named.items()
    ]
