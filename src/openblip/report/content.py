"""What a report says, as plain dataclasses: built by a demo, a run or CapFilt, kept as JSON, drawn by `page`.

A `Report` is headline metrics and sections; a section is blocks (charts, tables, galleries, strips of retrieved
images, stages of a run, details). Numbers stay numbers with a unit, so that the JSON can be read by programs;
how they are spelled is `numbers`' business. Text is plain, whatever it holds; only the report's own sentences
(`summary`, `intro`, `explanation`, `Text`) know `**bold**`, `` `code` `` and `[links](page.html)`.

Units: "fraction" (0..1, shown in percent), "seconds", "count", "" (a plain number), or any word to put behind it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, get_args

from openblip.core.config import from_dict
from openblip.core.errors import UserError, nearest
from openblip.report.page_images import PageImage

__all__ = [
    "VERDICTS",
    "Block",
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
    "Verdict",
    "from_json",
    "to_json",
]

Verdict = Literal["", "true", "partly", "false", "unparsed", "kept", "dropped", "borderline"]
"""What is known of a text: the first four are the judge's, the last three a filter's; "" is nothing."""

VERDICTS: dict[Verdict, tuple[str, str, str]] = {
    "true": ("good", "✓", "true"),
    "partly": ("mid", "◐", "partly true"),
    "false": ("bad", "✗", "false"),
    "unparsed": ("none", "?", "not understood"),
    "kept": ("good", "✓", "kept"),
    "borderline": ("mid", "◐", "borderline"),
    "dropped": ("bad", "✗", "dropped"),
}
"""Colour, sign and word of each verdict."""


@dataclass(kw_only=True)
class Headline:
    """One number that matters, with what it is to be measured by."""

    label: str
    value: float | None
    """None when it could not be measured"""
    unit: str = "fraction"
    spread: float | None = None
    """standard deviation over seeds, or half of a confidence interval"""
    reference: float | None = None
    """what knowing nothing gives"""
    reference_name: str = "chance"
    target: float | None = None
    better: Literal["higher", "lower"] = "higher"
    explanation: str = ""


@dataclass(kw_only=True)
class Series:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    """None breaks the line"""
    spread: Sequence[float] = field(default_factory=list)
    """half width of a band around the line, for each point"""
    role: Literal["line", "raw", "train"] = "line"
    """"raw" is noisy: drawn pale with a smoothed line over it; "train" is drawn dashed beside the evaluation"""
    color: int | None = None
    """number of its colour, to give lines that belong together the same; None takes the next one"""


@dataclass(kw_only=True)
class Chart:
    """Named lines over epochs or steps."""

    title: str
    series: list[Series]
    x_label: str = "epoch"
    unit: str = ""
    reference: float | None = None
    """a dotted line, usually chance"""
    reference_name: str = "chance"
    target: float | None = None
    explanation: str = ""


@dataclass(kw_only=True)
class Histogram:
    """Counts of several groups over the same bins."""

    title: str
    edges: Sequence[float]
    """bins + 1 borders, rising"""
    groups: dict[str, list[int]]
    """for each name, one count a bin"""
    x_label: str = ""
    unit: str = ""
    """of the edges"""
    threshold: float | None = None
    threshold_name: str = "threshold"
    explanation: str = ""


@dataclass(kw_only=True)
class Charts:
    """Charts side by side, as many in a row as there is room for."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart | Histogram]


@dataclass(kw_only=True)
class Cell:
    """A number with its spread, or a text with a remark."""

    value: float | str | None
    spread: float | None = None
    note: str = ""


@dataclass(kw_only=True)
class Column:
    """A table's column; `better` marks the best number of it."""

    name: str
    unit: str = ""
    better: Literal["", "higher", "lower"] = ""
    align: Literal["", "left", "right"] = ""
    """"" aligns numbers at the right and a column with a text at the left"""
    reference: float | None = None
    reference_name: str = "chance"


@dataclass(kw_only=True)
class Table:
    """Rows of numbers and texts."""

    kind: ClassVar[str] = "table"
    columns: list[Column]
    rows: Sequence[Sequence[Cell | float | str | None]]
    """as many cells as columns in each"""
    title: str = ""
    note: str = ""


@dataclass(kw_only=True)
class Fact:
    """A named value under an image or in details."""

    name: str
    value: float | str | None
    unit: str = ""


@dataclass(kw_only=True)
class CardText:
    """A text about an image: what was written or found, with what is known of it."""

    text: str
    label: str = ""
    """where it comes from: "beam 3", "web", "answer" """
    verdict: Verdict = ""
    reason: str = ""
    score: float | None = None
    score_name: str = "match"
    """a probability, shown in percent"""
    rank: int | None = None
    right: bool = False
    """it is one of the image's own texts"""


@dataclass(kw_only=True)
class Card:
    """An image with its texts."""

    image: PageImage | None
    texts: list[CardText] = field(default_factory=list)
    title: str = ""
    truth: list[str] = field(default_factory=list)
    """what is really there: the image's own captions, or the scene in words"""
    facts: list[Fact] = field(default_factory=list)

    def verdicts(self) -> list[Verdict]:
        """The verdicts of its texts, each once."""
        return list(dict.fromkeys(text.verdict for text in self.texts if text.verdict))


@dataclass(kw_only=True)
class Gallery:
    """Cards, which the reader can narrow down to those with a text of one verdict."""

    kind: ClassVar[str] = "gallery"
    cards: list[Card]
    title: str = ""
    note: str = ""

    def counts(self) -> Counter[Verdict]:
        """How many cards have a text of each verdict."""
        return Counter(verdict for card in self.cards for verdict in card.verdicts())

    def uneven(self) -> bool:
        """Whether any image is far from square."""
        images = [card.image for card in self.cards if card.image]
        return any(not 0.8 <= image.width / image.height <= 1.25 for image in images)


@dataclass(kw_only=True)
class Result:
    """One thing that a search found, best first."""

    image: PageImage | None = None
    text: str = ""
    score: float | None = None
    right: bool = False


@dataclass(kw_only=True)
class Strip:
    """A query, a text or an image, and what it found."""

    results: list[Result]
    query: str = ""
    query_image: PageImage | None = None
    right_rank: int | None = None
    """rank of the best right one among all, from 1; it may lie beyond `results`"""
    note: str = ""


@dataclass(kw_only=True)
class Strips:
    """Queries with their results."""

    kind: ClassVar[str] = "strips"
    strips: list[Strip]
    title: str = ""
    note: str = ""


@dataclass(kw_only=True)
class Stage:
    """A part of a run and the time it took."""

    name: str
    seconds: float
    note: str = ""


@dataclass(kw_only=True)
class Stages:
    """Where the time went."""

    kind: ClassVar[str] = "stages"
    stages: list[Stage]
    title: str = "Where the time went"


@dataclass(kw_only=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    paragraphs: list[str]
    tone: Literal["plain", "note", "warning"] = "plain"


@dataclass(kw_only=True)
class Details:
    """Something to look up, folded away: names and values, or lines as they are."""

    kind: ClassVar[str] = "details"
    title: str
    facts: list[Fact] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    note: str = ""


Block = Charts | Table | Gallery | Strips | Stages | Text | Details


@dataclass(kw_only=True)
class Section:
    """A chapter of the page."""

    title: str
    intro: str = ""
    blocks: list[Block] = field(default_factory=list)
    tone: Literal["plain", "wrong"] = "plain"
    """"wrong" marks the chapter about failures"""


@dataclass(kw_only=True)
class Report:
    """The whole page."""

    title: str
    subtitle: str = ""
    summary: list[str] = field(default_factory=list)
    headlines: list[Headline] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    made: str = ""
    """when and with what, at the page's foot"""


_BLOCKS: dict[str, type[Any]] = {cls.kind: cls for cls in get_args(Block)}


def to_json(report: Report) -> dict[str, Any]:
    """Return plain JSON values: blocks carry their "kind", numbers that are not finite become null."""
    plain = _plain(report)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        kind = getattr(value, "kind", None)
        return ({"kind": kind} if kind else {}) | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(data: Any) -> Report:
    """Return the report that `to_json` was given.

    Raises:
        UserError: `data` is no report, with what is wrong in it.
    """
    if not isinstance(data, dict) or "title" not in data:
        raise UserError("this is no report: a report is a JSON object with a title and sections")
    sections = []
    for number, item in enumerate(data.get("sections", [])):
        where = f"sections[{number}]"
        if not isinstance(item, dict):
            raise UserError(f"{where} of the report must be an object, not {item!r}")
        blocks = [_block(block, f"{where}.blocks[{i}]") for i, block in enumerate(item.get("blocks", []))]
        section = from_dict(Section, {key: value for key, value in item.items() if key != "blocks"}, where=where)
        section.blocks = blocks
        sections.append(section)
    report = from_dict(Report, {key: value for key, value in data.items() if key != "sections"})
    report.sections = sections
    return report


def _block(data: Any, where: str) -> Block:
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in _BLOCKS:
        raise UserError(f'{where} of the report has the unknown kind "{kind}"{nearest(str(kind), _BLOCKS)}')
    values = {key: value for key, value in data.items() if key != "kind"}
    block: Block = from_dict(_BLOCKS[kind], values, where=where)
    return block
