"""How captions and questions are cleaned before a model reads them."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["CleanText", "clean_caption", "clean_question", "cleaned"]

CleanText = Literal["simplify", "spaces", "none"]
"""As `clean_caption`, only spaces made single, or as it was written."""

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def clean_caption(text: str, max_words: int | None = 30, *, simplify: bool = True) -> str:
    """Return a caption as the reference feeds it: lower case, little punctuation, at most `max_words` words.

    Args:
        simplify: False keeps case and punctuation (other languages, cased vocabularies) and only makes
            spaces single.
    """
    if simplify:
        text = _PUNCTUATION.sub(" ", text.lower())
    words = text.split()
    return " ".join(words if max_words is None else words[:max_words])


def cleaned(text: str, clean: CleanText, max_words: int | None = None) -> str:
    """A text as training reads it, "" where it has no word; "none" leaves it as it was written, words uncounted."""
    if clean == "none":
        return text if text.strip() else ""
    return clean_caption(text, max_words, simplify=clean == "simplify")


def clean_question(text: str, max_words: int | None = 50, *, simplify: bool = True) -> str:
    """As `clean_caption`, for questions: the reference drops punctuation there, and blanks it in captions."""
    if simplify:
        text = _PUNCTUATION.sub("", text.lower())
    return clean_caption(text, max_words, simplify=False)
