"""A contact sheet of what a search of an index found.

write_report("found.html", search_sheet("a red bus", hits, images, "INDEX"))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from openblip.core.text import counted
from openblip.index import Hit
from openblip.report.content import Card, CardText, Fact, Gallery, Report, Section
from openblip.report.page_images import PageImage

__all__ = ["search_sheet"]


def search_sheet(query: str, hits: Sequence[Hit], images: Iterable[PageImage | None], index: str) -> Report:
    """A card for each hit, the best first.

    Args:
        query: in words.
        images: of each hit; None for one that cannot be read.
    """
    cards = [_card(place, hit, image) for place, (hit, image) in enumerate(zip(hits, images, strict=True), 1)]
    found = f"{counted(len(hits), 'image')} of {index}, the best first."
    if any(hit.itm is not None for hit in hits):
        found += (
            " The score that orders them is the ITC similarity plus ITM's logit of a match (of several texts, the "
            "weighted sum of their log-probabilities); ITM is the probability that an image shows "
            "what was asked for."
        )
    if len({hit.itm is None for hit in hits}) > 1:
        found += " Images that ITM did not read follow those that it read, ordered by ITC."
    return Report(title=query, subtitle=found, sections=[Section(title="Images", blocks=[Gallery(cards=cards)])])


def _card(place: int, hit: Hit, image: PageImage | None) -> Card:
    facts = [Fact(name="ITC", value=f"{hit.itc:+.3f}"), Fact(name="date", value=hit.date[:10])]
    if hit.itm is not None:
        facts[:0] = [Fact(name="score", value=f"{hit.score:+.3f}"), Fact(name="ITM", value=f"{hit.itm:.1%}")]
    facts += [Fact(name=name, value=str(value)) for name, value in hit.metadata.items()]
    texts = [CardText(text=hit.caption)] if hit.caption else []
    return Card(image=image, texts=texts, title=f"{place}. {Path(hit.path).name}", facts=facts)
