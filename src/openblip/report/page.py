"""A report as one HTML file: nothing is loaded from elsewhere, no script, every text escaped.

`write_report(folder / "report.html", report)` writes the page and `report.json` beside it; both appear whole or not
at all. The page is templates/page.html; each kind of block has its own template in templates/blocks.
"""

from __future__ import annotations

import re
import time
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from openblip import __version__
from openblip.core.errors import UserError
from openblip.core.files import write_json, write_text
from openblip.core.text import read_json
from openblip.report.content import VERDICTS, Fact, Report, from_json, to_json
from openblip.report.curves import NUM_COLORS, draw
from openblip.report.numbers import spell, spell_score, spell_spread
from openblip.report.tables import lay_out

__all__ = ["environment", "read_report", "render", "write_report"]


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
    return environment().get_template("page.html").render(report=report)


@cache
def environment() -> Environment:
    """The templates, with the filters that write values and charts; every text is escaped."""
    found = Environment(
        loader=PackageLoader("openblip.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"verdicts": VERDICTS, "num_colors": NUM_COLORS}
    found.filters |= {
        "columns": lay_out,
        "draw": draw,
        "score": spell_score,
        "sentence": _sentence,
        "spell": spell,
        "spread": spell_spread,
        "value": _value,
    }
    return found


def _sentence(text: str) -> Markup:
    """The report's own sentences: escaped, then [a link to a page beside it](name), `code` and **bold**."""
    linked = re.sub(r"\[([^\]]+)\]\((\w[\w./-]*)\)", r'<a href="\2">\1</a>', str(escape(text)))
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", linked)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", marked))


def _value(fact: Fact) -> str:
    return fact.value if isinstance(fact.value, str) else spell(fact.value, fact.unit)
