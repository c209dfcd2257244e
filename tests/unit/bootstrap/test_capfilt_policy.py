"""Decisions as pure functions of scores."""

from __future__ import annotations

import math

import pytest

from openblip.bootstrap.policy import REASONS, Policy, decide
from openblip.bootstrap.table import Origin, Text
from openblip.core.errors import UserError

Given = tuple[str, Origin, float | None, float | None]

TEXTS: tuple[Given, ...] = (
    ("a bus", "web", 0.6, 0.1),
    ("buy now", "web", 0.2, 0.2),
    ("a red bus", "synthetic", 0.9, 0.5),
    ("A  red BUS", "synthetic", 0.9, 0.5),
    ("two dogs", "synthetic", 0.4, 0.3),
    ("", "synthetic", 0.9, 0.9),
    ("a road", "synthetic", math.nan, math.nan),
    ("a red bus on a road", "synthetic", 0.7, 0.4),
)
ALWAYS = {"A  red BUS": "repeated", "": "no-words", "a road": "no-score"}


def decided(policy: Policy, given: tuple[Given, ...] = TEXTS) -> tuple[list[str], dict[str, str]]:
    """The texts that stay, and the reason of each."""
    texts = [Text(text, origin, itm=itm, itc=itc) for text, origin, itm, itc in given]
    decide(texts, policy)
    assert {text.reason for text in texts} <= REASONS.keys()
    return [text.text for text in texts if text.kept], {text.text: text.reason for text in texts}


@pytest.mark.parametrize(
    ("policy", "kept", "reasons"),
    [
        (Policy(), ["a bus", "a red bus", "a red bus on a road"], {"buy now": "unmatched"}),
        (Policy(threshold=0.9), ["a red bus"], {"a bus": "unmatched"}),
        (Policy(name="best"), ["a red bus"], {"a bus": "not-best", "two dogs": "unmatched"}),
        (Policy(name="best", threshold=0.95), [], {"a red bus": "unmatched"}),
        (Policy(name="web-first"), ["a bus"], {"a red bus": "web-preferred", "buy now": "unmatched"}),
        (Policy(name="web-first", threshold=0.65), ["a red bus"], {"a red bus on a road": "not-best"}),
        (Policy(name="blip2"), ["a red bus", "a red bus on a road"], {"two dogs": "outranked"}),
        (Policy(name="blip2", keep=9), [t for t, *_ in TEXTS if t not in ALWAYS], {"buy now": "ranked"}),
        (Policy(origins=("web",)), ["a bus"], {"a red bus": "left-out"}),
        (Policy(threshold=0.0), [t for t, *_ in TEXTS if t not in ALWAYS], {}),
    ],
)  # fmt: skip
def test_policies(policy: Policy, kept: list[str], reasons: dict[str, str]) -> None:
    found, why = decided(policy)
    assert found == kept
    if policy.origins == ("web", "synthetic"):
        reasons = {**reasons, **ALWAYS}
    assert {text: why[text] for text in reasons} == reasons


def test_of_equals_the_web_s_text_stays() -> None:
    given: tuple[Given, ...] = (("a", "web", 0.9, 0.3), ("b", "synthetic", 0.9, 0.3), ("c", "synthetic", 0.9, 0.3))
    assert decided(Policy(name="best"), given)[0] == ["a"]
    assert decided(Policy(name="blip2", keep=1), given)[0] == ["a"]


@pytest.mark.parametrize("name", ["paper", "best", "web-first", "blip2"])
def test_what_is_left_out_hides_nothing(name: str) -> None:
    given: tuple[Given, ...] = (("A red  bus", "web", 0.9, 0.5), ("a red bus", "synthetic", 0.9, 0.5))
    assert decided(Policy(name=name, origins=("synthetic",)), given) == (  # type: ignore[arg-type]
        ["a red bus"],
        {"A red  bus": "left-out", "a red bus": "ranked" if name == "blip2" else "matched"},
    )


def test_an_outside_model_ranks_where_it_is_asked() -> None:
    texts = [Text("a", "web", itm=0.9, itc=0.9, ranker=0.1), Text("b", "synthetic", itm=0.1, itc=0.1, ranker=0.2)]
    decide(texts, Policy(name="blip2", keep=1, rank_by="ranker"))
    assert [text.kept for text in texts] == [False, True]
    texts[1].ranker = None
    decide(texts, Policy(name="blip2", keep=1, rank_by="ranker"))
    assert [text.reason for text in texts] == ["ranked", "no-score"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"threshold": 1.5}, "between 0 and 1"), ({"keep": 0}, "at least 1"), ({"origins": ("mine",)}, "mine")],
)
def test_what_is_no_policy(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Policy(**settings)  # type: ignore[arg-type]
