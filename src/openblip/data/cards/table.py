"""The table of published datasets."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.data.cards.answers import ANSWERS
from openblip.data.cards.captions import CAPTIONS
from openblip.data.cards.card import Card
from openblip.data.cards.classes import CLASSES
from openblip.data.cards.composed import COMPOSED
from openblip.data.cards.dialogs import DIALOGS

__all__ = ["CARDS", "markdown_tables"]

CARDS: dict[str, Card] = {card.name: card for card in (*CAPTIONS, *ANSWERS, *DIALOGS, *CLASSES, *COMPOSED)}


def markdown_tables() -> str:
    """The datasets, and the published figures, as the tables of docs/data.md."""
    rows = [("dataset", "what it is", "splits", "licence")]
    rows += [(f"`{c.name}`", f"[{c.title}]({c.home})", ", ".join(c.splits), c.licence) for c in CARDS.values()]
    figures = [("dataset", "measure", "model", "value", "source")]
    figures += [(f"`{c.name}`", t.measure, t.model, t.value, t.source) for c in CARDS.values() for t in c.targets]
    return f"{_table(rows)}\n\nFigures of the papers:\n\n{_table(figures)}\n"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
