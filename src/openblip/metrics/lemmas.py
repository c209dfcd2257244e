"""Answers with nouns and verbs in their base forms, as LAVIS measures OK-VQA: a variant that needs the extra
"lemmas".

OK-VQA's answers are base forms ("ride" for "riding"), so LAVIS turns the generated answer into those too, by
spaCy's small English model. The official program does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openblip.core.errors import UserError, require

__all__ = ["lemmatizer"]

MODEL = "en_core_web_sm"
_CHANGED = ("NOUN", "VERB")


def lemmatizer() -> Callable[[str], str]:
    """What gives an answer with its nouns and verbs in their base forms.

    Raises:
        MissingExtra: spaCy is not there.
        UserError: its English model is not there.
    """
    spacy: Any = require("spacy", "lemmas")
    try:
        parse = spacy.load(MODEL)
    except OSError as error:
        raise UserError(
            f"lemmas need spaCy's English model: python -m spacy download {MODEL}; or leave --lemmas out"
        ) from error

    def apply(answer: str) -> str:
        return " ".join(token.lemma_ if token.pos_ in _CHANGED else token.text for token in parse(answer))

    return apply
