"""Pages about what was trained: numbers against chance, curves, pictures with verdicts, failures too.

`content` is what a report says (plain dataclasses), `page` writes it as one HTML file with its JSON beside it,
`curves`, `gallery`, `pictures`, `numbers` and `style.css` are the parts of the page, `run` makes a report of any
training run's folder, `capfilt` one of a CapFilt run (imported on its own, since it needs torch), `figures` saves
charts as PDF or PNG (the extra "report").
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
from openblip.report.pictures import Picture, picture
from openblip.report.run import run_report

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
    "Picture",
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
    "picture",
    "read_report",
    "render",
    "run_report",
    "save_figures",
    "to_json",
    "write_report",
]
