"""A report as one HTML file: nothing is loaded from elsewhere, no script, every text escaped.

`write_report(folder / "report.html", report)` writes the page and `report.json` beside it; both appear whole or not
at all.
"""

from __future__ import annotations

import re
import time
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path

from openblip import __version__
from openblip.core.errors import UserError
from openblip.core.files import write_json, write_text
from openblip.core.text import read_json
from openblip.report.content import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Details,
    Fact,
    Gallery,
    Headline,
    Histogram,
    Report,
    Section,
    Stages,
    Strips,
    Table,
    Text,
    from_json,
    to_json,
)
from openblip.report.curves import NUM_COLORS, draw_chart, draw_histogram
from openblip.report.gallery import draw_gallery, draw_strips, heading
from openblip.report.numbers import spell, spell_spread

__all__ = ["read_report", "render", "write_report"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser itself holds the page to loading nothing and running no script, whatever a caption says."""


def write_report(target: Path | str, report: Report) -> None:
    """Write the page to `target`, and the same content as JSON beside it (report.html -> report.json).

    Raises:
        UserError: the disk is full, or `target` is no place for a file.
    """
    target = Path(target)
    if target.is_dir():
        raise UserError(f'{target} is a folder; name the page itself, for example "{target / "report.html"}"')
    if not report.made:
        report.made = f"{time.strftime('%Y-%m-%d %H:%M')} by OpenBLIP {__version__}"
    write_json(target.with_suffix(".json"), to_json(report), indent=None)
    write_text(target, render(report))


def read_report(path: Path | str) -> Report:
    """Read the JSON that `write_report` wrote.

    Raises:
        UserError: there is no such file, or it holds no report.
    """
    try:
        return from_json(read_json(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def render(report: Report) -> str:
    """Return the page."""
    anchors = [f"s{i}" for i in range(1, len(report.sections) + 1)]
    links = "".join(
        f'<a href="#{anchor}">{escape(section.title)}</a>'
        for anchor, section in zip(anchors, report.sections, strict=True)
    )
    sections = "".join(_section(s, anchor) for s, anchor in zip(report.sections, anchors, strict=True))
    subtitle = f'<p class="subtitle">{_rich(report.subtitle)}</p>' if report.subtitle else ""
    summary = f'<div class="summary">{_paragraphs(report.summary)}</div>' if report.summary else ""
    heads = "".join(_headline(head) for head in report.headlines)
    heads = f'<div class="heads">{heads}</div>' if heads else ""
    nav = f"<nav><div>{links}</div></nav>" if len(report.sections) > 1 else ""
    made = f"Made {escape(report.made)}. " if report.made else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(report.title)}</title>\n<style>{_style()}</style></head>\n<body>"
        f'<header class="top"><p class="brand">OpenBLIP report</p><h1>{escape(report.title)}</h1>'
        f"{subtitle}{summary}{heads}</header>\n{nav}<main>{sections}</main>\n<footer>{made}"
        "The same content is in the JSON file of this name beside the page.</footer></body></html>\n"
    )


@cache
def _style() -> str:
    return resources.files("openblip.report").joinpath("style.css").read_text(encoding="utf-8")


def _section(section: Section, anchor: str) -> str:
    intro = f'<p class="intro">{_rich(section.intro)}</p>' if section.intro else ""
    blocks = "".join(
        f'<div class="block">{_block(block, f"{anchor}b{i}")}</div>\n' for i, block in enumerate(section.blocks)
    )
    tone = ' class="wrong"' if section.tone == "wrong" else ""
    return f'<section id="{anchor}"{tone}><h2>{escape(section.title)}</h2>{intro}{blocks}</section>\n'


def _block(block: Block, name: str) -> str:
    if isinstance(block, Charts):
        return f'<div class="charts">{"".join(_chart(chart) for chart in block.charts)}</div>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Gallery):
        return draw_gallery(block, name)
    if isinstance(block, Strips):
        return draw_strips(block)
    if isinstance(block, Stages):
        return _stages(block)
    if isinstance(block, Text):
        tone = {"plain": "", "note": " note-box", "warning": " warning"}[block.tone]
        return f'<div class="text{tone}">{_paragraphs(block.paragraphs)}</div>'
    return _details(block)


def _rich(text: str) -> str:
    """The report's own sentences: escaped, then [a link to a page beside it](name), `code` and **bold**."""
    linked = re.sub(r"\[([^\]]+)\]\((\w[\w./-]*)\)", r'<a href="\2">\1</a>', escape(text))
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", linked)
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", marked)


def _paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{_rich(text)}</p>" for text in texts)


def _headline(head: Headline) -> str:
    spread = f" <small>{spell_spread(head.spread, head.unit)}</small>" if head.spread is not None else ""
    against = []
    if head.reference is not None:
        against.append(f"{escape(head.reference_name)} {spell(head.reference, head.unit)}{_times(head)}")
    if head.target is not None:
        met = head.value is not None and (
            head.value >= head.target if head.better == "higher" else head.value <= head.target
        )
        state, sign = ("reached", "✓ reached") if met else ("missed", "not reached")
        against.append(f'target {spell(head.target, head.unit)} <span class="{state}">{sign}</span>')
    track = ""
    if head.unit == "fraction" and head.value is not None and 0 <= head.value <= 1:
        marks = "".join(
            f'<b{kind} style="left:{100 * level:.2f}%"></b>'
            for level, kind in ((head.reference, ""), (head.target, ' class="goal"'))
            if level is not None and 0 <= level <= 1
        )
        track = f'<div class="track"><i style="width:{100 * head.value:.2f}%"></i>{marks}</div>'
    why = f'<p class="why">{_rich(head.explanation)}</p>' if head.explanation else ""
    return (
        f'<div class="head"><span class="label">{escape(head.label)}</span>'
        f'<span class="value">{spell(head.value, head.unit)}{spread}</span>{track}'
        f'<span class="against">{" · ".join(against)}</span>{why}</div>'
    )


def _times(head: Headline) -> str:
    if head.better == "lower" or not head.value or not head.reference or head.reference < 0:
        return ""
    times = head.value / head.reference
    return f" (\u00d7 {times:.0f})" if times >= 3 else ""


def _chart(chart: Chart | Histogram) -> str:
    drawing = draw_chart(chart) if isinstance(chart, Chart) else draw_histogram(chart)
    note = f'<p class="note">{_rich(chart.explanation)}</p>' if chart.explanation else ""
    return f'<div class="chart"><h3>{escape(chart.title)}</h3>{note}{drawing}</div>'


def _table(table: Table) -> str:
    cells = [[cell if isinstance(cell, Cell) else Cell(value=cell) for cell in row] for row in table.rows]
    assert all(len(row) == len(table.columns) for row in cells), "as many cells as columns"
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(table.columns)
    best = [_best(column, values) for column, values in zip(table.columns, columns, strict=True)]
    words = [any(isinstance(cell.value, str) for cell in values) for values in columns]
    head = "".join(
        f"<th{_words(w)}>{escape(c.name)}{_against(c)}</th>" for c, w in zip(table.columns, words, strict=True)
    )
    about = list(zip(table.columns, best, words, strict=True))
    body = ""
    for row in cells:
        drawn = (_cell(cell, c, best=b, words=w) for cell, (c, b, w) in zip(row, about, strict=True))
        body += f"<tr>{''.join(drawn)}</tr>"
    return (
        f'{heading(table.title, table.note)}<div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _words(words: bool) -> str:
    return ' class="words"' if words else ""


def _against(column: Column) -> str:
    if column.reference is None:
        return ""
    return f"<small>{escape(column.reference_name)} {spell(column.reference, column.unit)}</small>"


def _best(column: Column, cells: tuple[Cell, ...]) -> float | None:
    numbers = [cell.value for cell in cells if isinstance(cell.value, float | int)]
    if not column.better or len(numbers) < 2:
        return None
    low, high = min(numbers), max(numbers)
    return None if low == high else high if column.better == "higher" else low


def _cell(cell: Cell, column: Column, *, best: float | None, words: bool) -> str:
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    if isinstance(cell.value, str):
        return f"<td{_words(words)}>{escape(cell.value)}{note}</td>"
    spread = f" <small>{spell_spread(cell.spread, column.unit)}</small>" if cell.spread is not None else ""
    number = spell(cell.value, column.unit, even=True)
    if best is not None and cell.value == best:
        return f'<td class="best"><b>{number}</b>{spread}{note}</td>'
    return f"<td{_words(words)}>{number}{spread}{note}</td>"


def _stages(stages: Stages) -> str:
    total = sum(stage.seconds for stage in stages.stages)
    bar = "".join(
        f'<i class="k{i % NUM_COLORS}" style="flex:{1000 * max(stage.seconds, 0) / (total or 1):.1f}"></i>'
        for i, stage in enumerate(stages.stages)
    )
    rows = "".join(
        f'<li><i class="k{i % NUM_COLORS}"></i><span>{escape(stage.name)}'
        f"{f'<small>{escape(stage.note)}</small>' if stage.note else ''}</span>"
        f"<time>{spell(stage.seconds, 'seconds')}</time></li>"
        for i, stage in enumerate(stages.stages)
    )
    return (
        f'<div class="stages"><h3>{escape(stages.title)}: {spell(total, "seconds")} in all</h3>'
        f'<div class="bar">{bar}</div><ol>{rows}</ol></div>'
    )


def _details(details: Details) -> str:
    note = f'<p class="note">{_rich(details.note)}</p>' if details.note else ""
    facts = "".join(f"<dt>{escape(fact.name)}</dt><dd>{escape(_value(fact))}</dd>" for fact in details.facts)
    lines = f"<pre>{escape(chr(10).join(details.lines))}</pre>" if details.lines else ""
    facts = f"<dl>{facts}</dl>" if facts else ""
    return f"<details><summary>{escape(details.title)}</summary>{note}{facts}{lines}</details>"


def _value(fact: Fact) -> str:
    return fact.value if isinstance(fact.value, str) else spell(fact.value, fact.unit)
