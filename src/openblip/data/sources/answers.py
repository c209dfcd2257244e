"""Questions with their answers in a row of data, however they are written there.

    {"image": "1.jpg", "question": "what color is the bus?", "answer": "red"}
    {"image": "1.jpg", "question": "what color is the bus?", "answer": ["red", "red", "orange"]}
    {"image": "1.jpg", "question": "what color is the bus?", "answers": ["red", "orange"], "weights": [0.8, 0.2]}
    {"image": "1.jpg", "question": "what color is the bus?", "answers": {"red": 0.8, "orange": 0.2}}
    {"image": "1.jpg", "conversations": [{"from": "human", "value": "what color is it?"}, {"from": "gpt", ...}]}
    {"image": "1.jpg", "questions": [{"question": "what color is the bus?", "answer": "red"}, ...]}

An answer that several people gave stands there several times, or has a weight.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openblip.data.sample import BrokenSample
from openblip.data.sources.cells import is_missing, turns

__all__ = [
    "ANSWER_COLUMNS",
    "HOLDING_ANSWERS",
    "QUESTION_COLUMNS",
    "WEIGHT_COLUMNS",
    "GivenAnswers",
    "question_texts",
    "read_questions",
]

QUESTION_COLUMNS = ("question", "questions", "text", "conversations", "messages")
HOLDING_ANSWERS = ("questions", "conversations", "messages")
"""Columns of questions in which each has its answer with it."""
ANSWER_COLUMNS = ("answer", "answers", "multiple_choice_answer")
WEIGHT_COLUMNS = ("weights", "answer_weights", "weight")


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """What was answered to a question."""

    texts: tuple[str, ...]
    """an answer that several people gave as often as they gave it"""
    weights: tuple[float, ...]
    """of each in training; equal shares of one where the data give none"""

    @property
    def merged(self) -> dict[str, float]:
        """Each answer once, with the sum of its weights."""
        found: dict[str, float] = {}
        for text, weight in zip(self.texts, self.weights, strict=True):
            found[text] = found.get(text, 0.0) + weight
        return found


def question_texts(row: Mapping[str, Any], names: Mapping[str, str], label: str) -> tuple[str, ...]:
    """The questions of a row, each with its answers as one JSON text that `read_questions` reads.

    So they go through whatever carries captions: columns, grouping by image, one of several drawn.

    Args:
        names: which columns hold the "question", its "answer" and, where there are any, the "weight" of each.

    Raises:
        BrokenSample: "bad-row", a question without a word, without answers, or with weights that are none.
    """
    cell = _opened(row.get(names["question"]))
    if said := turns(cell):
        pairs = itertools.pairwise(said)
        asked = [{"question": a, "answer": b} for (one, a), (two, b) in pairs if two and not one]
        return tuple(text for item in asked for text in question_texts(item, _guess(item), label))
    if isinstance(cell, list | tuple):
        items = [item if isinstance(item, Mapping) else {} for item in cell]
        return tuple(text for item in items for text in question_texts(item, _guess(item), label))
    question = "" if is_missing(cell) else str(cell).strip()
    if not question:
        raise BrokenSample("bad-row", label, f'no question under "{names["question"]}"')
    column = names.get("answer", ANSWER_COLUMNS[0])
    answers, weights = _answers(_opened(row.get(column)))
    if not answers:
        raise BrokenSample("bad-row", label, f'no answer under "{column}"')
    given = _opened(row.get(names["weight"])) if "weight" in names else None
    if not is_missing(given):
        weights = _numbers(given if isinstance(given, list | tuple) else [given])
    if len(weights) != len(answers) or not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise BrokenSample("bad-row", label, f"the weights of {len(answers)} answers are {given or weights!r}")
    return (json.dumps([question, answers, weights], ensure_ascii=False),)


def read_questions(texts: Iterable[str]) -> tuple[tuple[str, ...], dict[str, GivenAnswers]]:
    """Questions and the answers to each, from what `question_texts` made.

    A question that was asked twice of an image has the answers of both, so that each asking counts once.
    """
    questions: list[str] = []
    found: dict[str, GivenAnswers] = {}
    for text in texts:
        question, answers, weights = json.loads(text)
        if question in found:
            before = found[question]
            times = questions.count(question)
            shares = [weight * times / (times + 1) for weight in before.weights]
            answers, weights = [*before.texts, *answers], [*shares, *(w / (times + 1) for w in weights)]
        found[question] = GivenAnswers(tuple(answers), tuple(weights))
        questions.append(question)
    return tuple(questions), found


def _guess(item: Mapping[str, Any]) -> dict[str, str]:
    """Which keys of a question among others hold what."""
    guesses = {"question": QUESTION_COLUMNS, "answer": ANSWER_COLUMNS, "weight": WEIGHT_COLUMNS}
    names = {role: next((name for name in known if name in item), "") for role, known in guesses.items()}
    return {role: name or guesses[role][0] for role, name in names.items() if name or role != "weight"}


def _opened(value: Any) -> Any:
    """Lists and objects in the cell of a CSV are JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _answers(value: Any) -> tuple[list[str], list[float]]:
    """Answers with their weights, from one, several, several with weights, or objects of VQA's annotations."""
    if isinstance(value, Mapping) and "answer" not in value:
        given = {str(text).strip(): weight for text, weight in value.items() if str(text).strip()}
        return list(given), _numbers(given.values())
    several: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
    texts = [_word(item.get("answer") if isinstance(item, Mapping) else item) for item in several]
    texts = [text for text in texts if text]
    return texts, [1 / max(1, len(texts))] * len(texts)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if is_missing(value) else str(value).strip()


def _numbers(values: Iterable[Any]) -> list[float]:
    """Weights as numbers, NaN for what is none."""
    found = []
    for value in values:
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            found.append(math.nan)
    return found
