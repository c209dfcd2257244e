"""What is searched for: a text as it is, or several with weights, "+car -red" and "+car -0.5*red"."""

from __future__ import annotations

import re

from openblip.core.errors import UserError

__all__ = ["parse_query"]

_SIGN = re.compile(r"(?:^|\s)([+-])\s*(?:(\d+(?:\.\d+)?|\.\d+)\*)?(?=\S)")


def parse_query(text: str) -> list[tuple[str, float]]:
    """Texts with their weights; those after - have weights below 0.

    A text that does not begin with + or - is one text, whatever signs follow.

    Raises:
        UserError: it is empty, or all of it is to be avoided.
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
    terms = [(words, weight) for words, weight in terms if words and weight]
    if not any(weight > 0 for _, weight in terms):
        raise UserError(f'"{text}" says only what is not wanted; add what is: "+car -red"')
    return terms
