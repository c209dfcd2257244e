"""A report's line charts as SVG files for a paper or slides: the drawing of the page with its colours inside."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import SubElement, tostring

from openblip.core.errors import UserError
from openblip.core.files import write_text
from openblip.report.content import Chart, Charts, Report
from openblip.report.curves import chart_svg
from openblip.report.page import environment

__all__ = ["save_figures"]


def save_figures(report: Report, folder: Path | str) -> list[Path]:
    """Write each line chart of `report` as an SVG file named after its section and title, and return the files.

    Raises:
        UserError: a report without line charts.
    """
    drawn = [
        (f"{section.title} {chart.title}", svg)
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Charts)
        for chart in block.charts
        if isinstance(chart, Chart) and (svg := chart_svg(chart, hovers=False)) is not None
    ]
    if not drawn:
        raise UserError(f'the report "{report.title}" has no line charts to save as figures')
    written: list[Path] = []
    for title, svg in drawn:
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "figure"
        path, number = Path(folder) / f"{stem}.svg", 2
        while path in written:
            path, number = Path(folder) / f"{stem}-{number}.svg", number + 1
        svg.set("xmlns", "http://www.w3.org/2000/svg")
        style = SubElement(svg, "style")
        style.text = _style()
        write_text(path, tostring(svg, encoding="unicode", xml_declaration=True))
        written.append(path)
    return written


def _style() -> str:
    """The curves' style on a light ground; colours are written out, since few programs know CSS variables."""
    light = environment().get_template("style.css").render().split("}", 1)[0]
    colors = dict(re.findall(r"--([\w-]+):(#\w+)", light))
    curves = environment().get_template("curves.css").render()
    return "svg{font:11.5px sans-serif}" + re.sub(r"var\(--([\w-]+)\)", lambda found: colors[found[1]], curves)
