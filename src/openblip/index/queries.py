"""What is searched for: a text as it is, or several with weights, "+car -red" and "+car -0.5*red"."""

from __future__ import annotations

import re

from openblip.core.errors import UserError

__all__ = ["parse_query"]

_MOST = 32
"""texts of one query: ITM reads each candidate with each of them"""
_HEAVIEST = 1000.0
"""weight, far from where float32 ends"""
_SIGN = re.compile(r"(?:^|\s)([+-])\s*(?:(\d+(?:\.\d+)?|\.\d+)\*)?(?=\S)")


def parse_query(text: str) -> list[tuple[str, float]]:
    """Texts with their weights; those after - have weights below 0.

    A text that does not begin with + or - is one text, whatever signs follow.

    Raises:
        UserError: it is empty, a sign has no text, all of it is to be avoided, or it has too many texts or too
            large a weight.
    """
    text = text.strip()
    if not text.startswith(("+", "-")):
        if not text:
            raise UserError('a search needs a text, such as "a red bus"')
        return [(text, 1.0)]
    signs = list(_SIGN.finditer(text))
    terms = []
    for sign, end in zip(signs, [*(sign.start() for sign in signs[1:]), len(text)], strict=False):
        weight = float(sign[2] or 1)
        terms.append((text[sign.end() : end].strip(), weight if sign[1] == "+" else -weight))
    if not all(words.strip("+- ") for words, _ in terms) or not terms:
        raise UserError(f'in "{_cut(text)}" a sign has no text after it; write "+car -red"')
    if len(terms) > _MOST:
        raise UserError(f"a search takes at most {_MOST} texts with signs, not {len(terms)}")
    if any(abs(weight) > _HEAVIEST for _, weight in terms):
        raise UserError(f'in "{_cut(text)}" a weight is larger than {_HEAVIEST:g}; give a smaller one')
    terms = [(words, weight) for words, weight in terms if weight]
    if not any(weight > 0 for _, weight in terms):
        raise UserError(f'"{_cut(text)}" says only what is not wanted; add what is: "+car -red"')
    return terms


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
