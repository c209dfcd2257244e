"""Base forms of answers: what spaCy is asked for, and what is said where it is not there."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from openblip.core.errors import MissingExtra, UserError
from openblip.metrics import lemmas
from openblip.metrics.lemmas import lemmatizer


class Token(NamedTuple):
    text: str
    lemma_: str
    pos_: str


KNOWN = {
    "horses": Token("horses", "horse", "NOUN"),
    "riding": Token("riding", "ride", "VERB"),
    "two": Token("two", "2", "NUM"),
    "better": Token("better", "good", "ADJ"),
}


def _spacy(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = ModuleType("spacy")
    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)


def test_nouns_and_verbs_become_base_forms_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    _spacy(monkeypatch, lambda name: lambda text: [KNOWN[word] for word in text.split()])
    assert lemmatizer()("two horses riding better") == "two horse ride better"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingExtra, match=r"openblip\[lemmas\]"):
        lemmatizer()

    def load(name: str) -> None:
        raise OSError(f"[E050] Can't find model '{name}'")

    _spacy(monkeypatch, load)
    with pytest.raises(UserError, match=f"python -m spacy download {lemmas.MODEL}; or leave --lemmas out"):
        lemmatizer()
