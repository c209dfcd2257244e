"""Which texts of an image stay: pure functions of their scores, so that another choice costs no model.

    decide(texts, Policy(name="paper", threshold=0.5))     # sets .kept and .reason of each text

- "paper": every text, from the web or written, that ITM takes for matched (probability at least the threshold).
- "best": the one text of the image with the highest ITM probability, if that reaches the threshold.
- "web-first": the matched texts from the web; where there are none, the best matched written one.
- "blip2": no threshold; texts are ranked by image-text similarity and the best `keep` stay. The loader draws one
  of them at each step (Li et al. 2023, section 4.1: 10 written texts and the web's, ranked by CLIP, two kept).
- "all": every text stays, whatever its scores; for runs without a filter, which have none.

`origins` leaves one source of texts out and a threshold of 0 keeps all: with both, the rows of the paper's first
table (no bootstrapping, captioner alone, filter alone, both).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from openblip.bootstrap.table import Text
from openblip.core.errors import UserError

__all__ = ["REASONS", "Policy", "decide"]

REASONS = {
    "matched": "ITM probability at or above the threshold",
    "unmatched": "ITM probability below the threshold",
    "not-best": "matched, but another text of the image is better",
    "web-preferred": "matched, but the text from the web stands for the image",
    "ranked": "among the best by similarity",
    "outranked": "others are more similar to the image",
    "unjudged": "no score decides: every text of a wanted origin stays",
    "left-out": "texts of this origin are not wanted",
    "repeated": "the same words as an earlier text of the image",
    "no-words": "nothing was written",
    "no-score": "the score is not a number",
    "no-image": "the image was gone when the training set was written",
}
"""Why a text stays or goes."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How it is decided which texts stay."""

    name: Literal["paper", "best", "web-first", "blip2", "all"] = "paper"
    threshold: float = 0.5
    """least ITM probability (two-way softmax); no part of "blip2" and "all" """
    keep: int = 2
    """texts that "blip2" keeps for each image"""
    origins: tuple[str, ...] = ("web", "synthetic")
    """whose texts are wanted at all"""
    rank_by: Literal["itc", "ranker"] = "itc"
    """similarity that "blip2" ranks by: the filter's ITC, or the outside model named with --ranker"""

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise UserError(f"threshold is {self.threshold}; it is a probability, between 0 and 1")
        if self.keep < 1:
            raise UserError(f"keep is {self.keep}; it must be at least 1")
        unknown = set(self.origins) - {"web", "synthetic"}
        if unknown or not self.origins:
            raise UserError(f'origins are "web" and "synthetic", not {sorted(unknown) or "none"}')

    @property
    def needs_filter(self) -> bool:
        """Whether it decides by the scores of a filter."""
        return self.name != "all" and not (self.name == "blip2" and self.rank_by == "ranker")


def decide(texts: Sequence[Text], policy: Policy) -> None:
    """Set `kept` and `reason` of the texts of one image."""
    open_texts: list[Text] = []
    seen: set[str] = set()
    for text in texts:
        text.kept, text.reason = False, ""
        words = " ".join(text.text.lower().split())
        score = _score(text, policy)
        if text.origin not in policy.origins:
            text.reason = "left-out"
        elif not words:
            text.reason = "no-words"
        elif words in seen:
            text.reason = "repeated"
        elif score is None or math.isnan(score):
            text.reason = "no-score"
        else:
            open_texts.append(text)
        if text.origin in policy.origins:
            seen.add(words)
    _RULES[policy.name](open_texts, policy)


def _score(text: Text, policy: Policy) -> float | None:
    """What the policy decides by; for "all", which decides by nothing, any number does."""
    if policy.name == "all":
        return 1.0
    return _similarity(text, policy) if policy.name == "blip2" else text.itm


def _similarity(text: Text, policy: Policy) -> float | None:
    return text.itc if policy.rank_by == "itc" else text.ranker


def _keep_matched(texts: Sequence[Text], policy: Policy) -> list[Text]:
    matched = []
    for text in texts:
        assert text.itm is not None
        text.kept = text.itm >= policy.threshold
        text.reason = "matched" if text.kept else "unmatched"
        if text.kept:
            matched.append(text)
    return matched


def _drop(texts: Sequence[Text], reason: str) -> None:
    for text in texts:
        text.kept, text.reason = False, reason


def _best(texts: Sequence[Text]) -> Text:
    """The first of the texts with the highest ITM probability."""
    return max(texts, key=lambda text: text.itm or 0.0)


def _keep_best(texts: Sequence[Text], policy: Policy) -> None:
    matched = _keep_matched(texts, policy)
    if matched:
        best = _best(matched)
        _drop([text for text in matched if text is not best], "not-best")


def _keep_web_first(texts: Sequence[Text], policy: Policy) -> None:
    matched = _keep_matched(texts, policy)
    written = [text for text in matched if text.origin == "synthetic"]
    if len(written) < len(matched):
        _drop(written, "web-preferred")
    elif written:
        best = _best(written)
        _drop([text for text in written if text is not best], "not-best")


def _keep_ranked(texts: Sequence[Text], policy: Policy) -> None:
    # Stable, so that of equals the web's text, which comes first, stays.
    order = sorted(texts, key=lambda text: -(_similarity(text, policy) or 0.0))
    for place, text in enumerate(order):
        text.kept = place < policy.keep
        text.reason = "ranked" if text.kept else "outranked"


def _keep_all(texts: Sequence[Text], policy: Policy) -> None:
    for text in texts:
        text.kept, text.reason = True, "unjudged"


def _keep_all_matched(texts: Sequence[Text], policy: Policy) -> None:
    _keep_matched(texts, policy)


_RULES: dict[str, Callable[[Sequence[Text], Policy], None]] = {
    "paper": _keep_all_matched,
    "best": _keep_best,
    "web-first": _keep_web_first,
    "blip2": _keep_ranked,
    "all": _keep_all,
}
