"""Pages about what was trained: metrics against chance, curves, images with verdicts, failures too.

`content` is what a report says (plain dataclasses), `page` writes it as one HTML file with its JSON beside it (from
the Jinja2 templates in templates/), `curves`, `images` and `numbers` are the parts of the page, `tables` shows a
`Table` as Markdown or on a terminal too, `run` makes a report of any training run's folder, `capfilt` one of a
CapFilt run (imported on its own, since it needs torch), `figures` saves charts as SVG files.
"""

from openblip.report.content import (
    Card,
    CardText,
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
    Result,
    Section,
    Series,
    Stage,
    Stages,
    Strip,
    Strips,
    Table,
    Text,
    from_json,
    to_json,
)
from openblip.report.figures import save_figures
from openblip.report.page import read_report, render, write_report
from openblip.report.page_images import PageImage, page_image
from openblip.report.run import run_report
from openblip.report.tables import markdown, print_table, terminal

__all__ = [
    "Card",
    "CardText",
    "Cell",
    "Chart",
    "Charts",
    "Column",
    "Details",
    "Fact",
    "Gallery",
    "Headline",
    "Histogram",
    "PageImage",
    "Report",
    "Result",
    "Section",
    "Series",
    "Stage",
    "Stages",
    "Strip",
    "Strips",
    "Table",
    "Text",
    "from_json",
    "markdown",
    "page_image",
    "print_table",
    "read_report",
    "render",
    "run_report",
    "save_figures",
    "terminal",
    "to_json",
    "write_report",
]
