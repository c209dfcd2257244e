"""Pictures with texts, as HTML: cards with verdicts, and strips of what a search found."""

from __future__ import annotations

from html import escape

from openblip.report.content import Card, CardText, Fact, Gallery, Result, Strip, Strips, Verdict
from openblip.report.numbers import spell, spell_score
from openblip.report.pictures import Picture

__all__ = ["VERDICTS", "badge", "draw_gallery", "draw_strips", "heading"]

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


def heading(title: str, note: str) -> str:
    """A block's title and remark, where there are any."""
    return (f"<h3>{escape(title)}</h3>" if title else "") + (f'<p class="note">{escape(note)}</p>' if note else "")


def badge(verdict: Verdict) -> str:
    """The verdict as a coloured label with a sign and a word; "" for none."""
    if not verdict:
        return ""
    color, sign, word = VERDICTS[verdict]
    return f'<span class="badge {color}">{sign} {word}</span>'


def draw_gallery(gallery: Gallery, name: str) -> str:
    """Return the gallery; `name` tells its filter from other galleries' on the page."""
    counts: dict[str, int] = {}
    for card in gallery.cards:
        for verdict in _verdicts(card):
            counts[verdict] = counts.get(verdict, 0) + 1
    choices = ""
    if len(counts) > 1:
        offered = [("all", "all", len(gallery.cards))]
        offered += [(verdict, VERDICTS[verdict][2], counts[verdict]) for verdict in VERDICTS if verdict in counts]
        radio = f'<input type="radio" name="{escape(name)}"'
        choices = "".join(
            f'<label>{radio} value="{value}"{" checked" if value == "all" else ""}>{word} {number}</label>'
            for value, word, number in offered
        )
        choices = f'<fieldset class="filter" aria-label="show">{choices}</fieldset>'
    cards = "".join(_card(card) for card in gallery.cards)
    uneven = any(c.picture and not 0.8 <= c.picture.width / c.picture.height <= 1.25 for c in gallery.cards)
    shape = " uneven" if uneven else ""
    body = f'{choices}<div class="cards{shape}">{cards}</div>'
    return f'{heading(gallery.title, gallery.note)}<div class="gallery">{body}</div>'


def _verdicts(card: Card) -> list[Verdict]:
    return list(dict.fromkeys(text.verdict for text in card.texts if text.verdict))


def _image(picture: Picture | None) -> str:
    if picture is None:
        return '<span class="frame"></span>'
    return (
        f'<img class="frame" src="{escape(picture.uri)}" width="{picture.width}" height="{picture.height}" '
        f'alt="{escape(picture.alt)}" loading="lazy" decoding="async">'
    )


def _card(card: Card) -> str:
    parts = [f'<span class="title">{escape(card.title)}</span>'] if card.title else []
    parts += [_card_text(text) for text in card.texts]
    if card.facts:
        parts.append(f'<div class="facts">{"".join(_fact(fact) for fact in card.facts)}</div>')
    if card.truth:
        lines = "".join(f"<p>{escape(line)}</p>" for line in card.truth)
        parts.append(f'<div class="truth"><b>What is there</b>{lines}</div>')
    return (
        f'<article class="card" data-verdict="{" ".join(_verdicts(card))}">{_image(card.picture)}'
        f'<div class="body">{"".join(parts)}</div></article>'
    )


def _card_text(text: CardText) -> str:
    meta = [badge(text.verdict)]
    if text.right:
        meta.append('<span class="badge good">✓ its own</span>')
    if text.rank is not None:
        meta.append(f"<span>rank {text.rank}</span>")
    if text.score is not None:
        meta.append(f"<span>{escape(text.score_name)} {spell_score(text.score)}</span>")
    if text.label:
        meta.append(f"<span>{escape(text.label)}</span>")
    if text.reason:
        meta.append(f"<span>{escape(text.reason)}</span>")
    line = "".join(meta)
    said = escape(text.text) if text.text.strip() else '<span class="muted">(no words)</span>'
    return f'<div class="said"><q>{said}</q>{f"""<div class="meta">{line}</div>""" if line else ""}</div>'


def _fact(fact: Fact) -> str:
    value = fact.value if isinstance(fact.value, str) else spell(fact.value, fact.unit)
    return f"<span>{escape(fact.name)} <b>{escape(value)}</b></span>"


def draw_strips(strips: Strips) -> str:
    """Return queries with what they found."""
    return heading(strips.title, strips.note) + "".join(_strip(strip) for strip in strips.strips)


def _strip(strip: Strip) -> str:
    asked = _image(strip.query_picture) if strip.query_picture else ""
    asked += f'<span class="asked">{escape(strip.query)}</span>' if strip.query else ""
    meta = []
    if strip.right_rank is not None:
        color = "good" if strip.right_rank == 1 else "mid" if strip.right_rank <= len(strip.results) else "bad"
        where = "first" if strip.right_rank == 1 else f"at rank {strip.right_rank}"
        meta.append(f'<span class="badge {color}">right one {where}</span>')
    if strip.note:
        meta.append(escape(strip.note))
    if meta:
        asked += f'<span class="meta">{" ".join(meta)}</span>'
    if any(result.picture for result in strip.results):
        found = f'<ol class="found">{"".join(_found_picture(r, i) for i, r in enumerate(strip.results, 1))}</ol>'
    else:
        found = f'<ol class="texts">{"".join(_found_text(result) for result in strip.results)}</ol>'
    return f'<div class="strip"><div class="query">{asked}</div>{found}</div>'


def _found_picture(result: Result, rank: int) -> str:
    score = spell_score(result.score) if result.score is not None else f"{rank}"
    under = f"✓ {score}" if result.right else score
    words = f"<br>{escape(result.text)}" if result.text else ""
    right = ' class="right"' if result.right else ""
    return f'<li{right}>{_image(result.picture)}<span class="under">{under}{words}</span></li>'


def _found_text(result: Result) -> str:
    score = f" <small>{spell_score(result.score)}</small>" if result.score is not None else ""
    sign = " ✓" if result.right else ""
    right = ' class="right"' if result.right else ""
    return f"<li{right}>{escape(result.text)}{sign}{score}</li>"
