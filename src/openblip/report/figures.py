"""A report's line charts as PDF, SVG or PNG for a paper or slides, drawn by matplotlib (the extra "report")."""

from __future__ import annotations

import re
from pathlib import Path

from openblip.core.errors import UserError, nearest, require
from openblip.core.files import atomic_path
from openblip.report.content import Chart, Charts, Report
from openblip.report.curves import smoothed

__all__ = ["save_figures"]

FORMATS = ("pdf", "svg", "png")
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9")
"""of Okabe and Ito, for colour-blind readers"""


def save_figures(report: Report, folder: Path | str, *, file_format: str = "pdf") -> list[Path]:
    """Write each line chart of `report` as a file named after its section and title, and return the files.

    Raises:
        MissingExtra: matplotlib is not installed.
        UserError: an unknown format, or a report without line charts.
    """
    if file_format not in FORMATS:
        raise UserError(f'figures cannot be written as "{file_format}"{nearest(file_format, FORMATS)}')
    charts = [
        (section.title, chart)
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Charts)
        for chart in block.charts
        if isinstance(chart, Chart)
    ]
    if not charts:
        raise UserError(f'the report "{report.title}" has no line charts to save as figures')
    require("matplotlib", "report")
    written: list[Path] = []
    for section, chart in charts:
        stem = re.sub(r"[^a-z0-9]+", "-", f"{section} {chart.title}".lower()).strip("-") or "figure"
        path = Path(folder) / f"{stem}.{file_format}"
        number = 2
        while path in written:
            path, number = Path(folder) / f"{stem}-{number}.{file_format}", number + 1
        with atomic_path(path) as temporary:
            _draw(chart, temporary, file_format)
        written.append(path)
    return written


def _draw(chart: Chart, path: Path, file_format: str) -> None:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(4.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for i, series in enumerate(chart.series):
        color = _COLORS[(i if series.color is None else series.color) % len(_COLORS)]
        values = [float("nan") if y is None else y for y in series.y]
        noisy = series.role == "raw" and len(values) >= 12 and None not in series.y
        if noisy:
            axes.plot(series.x, values, color=color, alpha=0.25, linewidth=0.8)
        line = smoothed(values) if noisy else values
        axes.plot(series.x, line, color=color, linestyle="--" if series.role == "train" else "-", label=series.name)
        if len(series.spread) == len(values):
            low = [y - s for y, s in zip(values, series.spread, strict=True)]
            high = [y + s for y, s in zip(values, series.spread, strict=True)]
            axes.fill_between(series.x, low, high, color=color, alpha=0.18, linewidth=0)
    for level, name, style in ((chart.reference, chart.reference_name, ":"), (chart.target, "target", "--")):
        if level is not None:
            axes.axhline(level, color="0.45", linestyle=style, linewidth=1, label=name)
    if chart.unit == "fraction":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel="" if chart.unit == "fraction" else chart.unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, format=file_format, dpi=200)
