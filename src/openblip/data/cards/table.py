"""The table of published datasets."""

from __future__ import annotations

from openblip.data.cards.answers import ANSWERS
from openblip.data.cards.captions import CAPTIONS
from openblip.data.cards.card import Card

__all__ = ["CARDS"]

CARDS: dict[str, Card] = {card.name: card for card in (*CAPTIONS, *ANSWERS)}
