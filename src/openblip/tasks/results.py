"""What a model gives for images and texts, as values with names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openblip.generation.types import Decoded

__all__ = [
    "Answer",
    "Answered",
    "Caption",
    "ClassScore",
    "Found",
    "Judgement",
    "Likelihood",
    "Match",
    "Score",
    "captions_of",
    "written_answers",
]


@dataclass(frozen=True, slots=True)
class Caption:
    """A text generated for an image."""

    text: str
    """without the prompt"""
    log_prob: float
    """natural logarithm of the probability the model gives the tokens after the prompt, the end included"""
    num_tokens: int
    """generated tokens, the end token included"""
    complete: bool
    """whether the text came to its end before `max_new_tokens`"""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with how sure the model is."""

    text: str
    log_prob: float
    """natural logarithm of the probability of the whole answer, its end included"""
    probability: float
    """that the model writes this answer, exp(log_prob); of answers that were ranked, its share among the candidates
    that were read whole (softmax of their log-probabilities)"""


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answers, the best first."""

    question: str
    answers: tuple[Answer, ...]

    @property
    def text(self) -> str:
        """The best answer."""
        return self.answers[0].text


@dataclass(frozen=True, slots=True)
class Match:
    """How well a text fits an image."""

    text: str
    itm_probability: float
    """that they belong together, by ITM"""
    itc_similarity: float
    """cosine of their embeddings"""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """How well a class fits an image."""

    name: str
    probability: float
    """among all classes: softmax of their scores, of cosines over the temperature that the model learned"""
    score: float
    """cosine by ITC, mean difference of logits (matched minus not) by ITM"""


@dataclass(frozen=True, slots=True)
class Score:
    """How well a text fits an image by several measures; None for those that were not asked for."""

    text: str
    itm_probability: float | None
    """that they belong together, by ITM"""
    itc_similarity: float | None
    """cosine of their embeddings"""
    log_prob: float | None
    """natural logarithm of the probability of the text as a caption, its end included"""
    num_tokens: int | None
    """how many tokens that is of"""
    vqa_probability: float | None
    """of "yes" to the question whether the image shows the text (VQAScore)"""

    @property
    def log_prob_per_token(self) -> float | None:
        """Comparable for texts of different length."""
        if self.log_prob is None or self.num_tokens is None:
            return None
        return self.log_prob / max(self.num_tokens, 1)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a given caption of an image."""

    text: str
    log_prob: float
    """natural logarithm of the probability of its tokens after the prompt, the end included"""
    num_tokens: int
    """how many these are"""
    probability: float
    """among the texts given for the image: softmax of their log-probabilities"""

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token: comparable for texts of different length."""
        return math.exp(-self.log_prob / max(self.num_tokens, 1))


@dataclass(frozen=True, slots=True)
class Found:
    """A result of a search."""

    item: str
    """path of an image, or a text"""
    score: float
    """ITC similarity + ITM's logit of "matched" where ITM read the pair, else ITC similarity"""
    itc_similarity: float
    itm_probability: float | None
    """None where ITM did not read the pair; such results follow those that it read"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a sentence is true of two images (NLVR2)."""

    text: str
    probability: float
    """that it is true"""

    @property
    def true(self) -> bool:
        """The likelier of the two."""
        return self.probability >= 0.5


def written_answers(captions: Sequence[Caption]) -> tuple[Answer, ...]:
    """Generated texts as answers in their order, each with its own probability."""
    return tuple(Answer(one.text, one.log_prob, math.exp(one.log_prob)) for one in captions)


def captions_of(decoded: Decoded, rows: int, tokenizer: Any) -> list[list[Caption]]:
    """Decoded texts as captions of each of `rows` prompts."""
    captions: list[list[Caption]] = [[] for _ in range(rows)]
    for row, ids, log_prob, ended in decoded.texts():
        captions[row].append(Caption(tokenizer.decode(ids), log_prob, len(ids), ended))
    return captions
