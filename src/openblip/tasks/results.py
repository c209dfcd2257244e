"""What a model says of pictures and texts, as values with names: what the predictor returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Found", "Judgement", "Likelihood", "Match"]


@dataclass(frozen=True, slots=True)
class Match:
    """How well a text fits a picture."""

    text: str
    itm_probability: float
    """that they belong together, by ITM"""
    itc_similarity: float
    """cosine of their embeddings"""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a given caption of a picture."""

    text: str
    log_prob: float
    """natural logarithm of the probability of its tokens after the prompt, the end included"""
    num_tokens: int
    """how many these are"""
    probability: float
    """among the texts given for the picture: softmax of their log-probabilities"""

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token: comparable for texts of different length."""
        return math.exp(-self.log_prob / max(self.num_tokens, 1))


@dataclass(frozen=True, slots=True)
class Found:
    """A result of a search."""

    item: str
    """path of a picture, or a text"""
    score: float
    """ITC similarity + ITM logit where ITM read the pair, else ITC similarity"""
    itc_similarity: float
    itm_probability: float | None
    """None where only ITC was asked"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a sentence is true of two pictures (NLVR2)."""

    text: str
    probability: float
    """that it is true"""

    @property
    def true(self) -> bool:
        """The likelier of the two."""
        return self.probability >= 0.5
