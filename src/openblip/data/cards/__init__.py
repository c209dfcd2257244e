"""One table of published datasets, named on the command line as `coco:test` or `vqav2:val`.

    openblip datasets                              # the table
    openblip datasets coco --data-root /data       # a card, and what of it is in /data/coco

A card is configuration: which files hold a split, in which published forms, and where the images lie. The sources
of `openblip.data.sources` read them.
"""

from __future__ import annotations

from openblip.data.cards.card import Archive, Card, Form, Target
from openblip.data.cards.find import card_named, find_split, missing_images, named_split
from openblip.data.cards.table import CARDS

__all__ = [
    "CARDS",
    "Archive",
    "Card",
    "Form",
    "Target",
    "card_named",
    "find_split",
    "missing_images",
    "named_split",
]
