"""Questions with their answers in a row of data, however they are written there.

    {"image": "1.jpg", "question": "what color is the bus?", "answer": "red"}
    {"image": "1.jpg", "question": "what color is the bus?", "answer": ["red", "red", "orange"]}
    {"image": "1.jpg", "question": "what color is the bus?", "answers": ["red", "orange"], "weights": [0.8, 0.2]}
    {"image": "1.jpg", "question": "what color is the bus?", "answers": {"red": 0.8, "orange": 0.2}}
    {"image": "1.jpg", "conversations": [{"from": "human", "value": "what color is it?"}, {"from": "gpt", ...}]}
    {"image": "1.jpg", "questions": [{"question": "what color is the bus?", "answer": "red"}, ...]}

An answer that several people gave stands there several times, or has a weight. A number counts as its text; an
empty answer counts among those that were given, and is not trained on; null is no answer.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openblip.data.sample import BrokenSample
from openblip.data.sources.cells import given_id, is_missing, is_too_deep, turns

__all__ = [
    "ABOUT_COLUMNS",
    "ANSWER_COLUMNS",
    "HOLDING_ANSWERS",
    "QUESTION_COLUMNS",
    "WEIGHT_COLUMNS",
    "About",
    "GivenAnswers",
    "by_question",
    "question_texts",
    "read_questions",
]

QUESTION_COLUMNS = ("question", "questions", "text", "conversations", "messages")
HOLDING_ANSWERS = ("questions", "qas", "conversations", "messages")
"""Columns of questions in which each has its answer with it."""
ANSWER_COLUMNS = ("answer", "answers", "direct_answers", "multiple_choice_answer")
WEIGHT_COLUMNS = ("weights", "answer_weights", "weight")
ABOUT_COLUMNS = ("question_id", "choices", "correct_choice_idx", "difficult_direct_answer", "answer_type", "types")
"""Columns of what published datasets say of a question besides, see `About`."""


@dataclass(frozen=True, slots=True)
class About:
    """What published datasets say of a question besides its answers."""

    id: int | str | None = None
    """as written there: evaluation servers tell 1 from "1" """
    choices: tuple[str, ...] = ()
    """to choose from (A-OKVQA)"""
    correct: int | None = None
    """which of the choices is right; None where that is not told"""
    difficult: bool = False
    """left out of the accuracy of direct answers (A-OKVQA)"""
    kind: str = ""
    """VQA's "yes/no", "number" or "other"; GQA's "open" or "binary" """


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """What was answered to a question."""

    texts: tuple[str, ...]
    """an answer that several people gave as often as they gave it; none where answers are to be predicted"""
    weights: tuple[float, ...]
    """of each in training; equal shares of one where the data give none"""
    about: About = About()

    @property
    def merged(self) -> dict[str, float]:
        """Each answer with a word in it once, with the sum of its weights."""
        found: dict[str, float] = {}
        for text, weight in zip(self.texts, self.weights, strict=True):
            if text:
                found[text] = found.get(text, 0.0) + weight
        return found


def question_texts(
    row: Mapping[str, Any], names: Mapping[str, str], label: str, *, need_answers: bool = True
) -> tuple[str, ...]:
    """The questions of a row, each with its answers as one JSON text that `read_questions` reads.

    So they go through whatever carries captions: columns, grouping by image, one of several drawn.

    Args:
        names: which columns hold the "question", its "answer" and, where there are any, the "weight" of each; and
            by their own names `ABOUT_COLUMNS`.
        need_answers: refuse questions without answers.

    Raises:
        BrokenSample: "bad-row", a question without a word, without answers, with an answer that is null, or with
            weights that are none.
    """
    cell = _opened(row.get(names["question"]))
    if said := turns(cell):
        pairs = itertools.pairwise(said)
        asked = [{"question": a, "answer": b} for (one, a), (two, b) in pairs if two and not one]
        return tuple(text for item in asked for text in question_texts(item, _guess(item), label))
    if isinstance(cell, list | tuple):
        items = [item if isinstance(item, Mapping) else {} for item in cell]
        return tuple(
            text for item in items for text in question_texts(item, _guess(item), label, need_answers=need_answers)
        )
    question = "" if is_missing(cell) else str(cell).strip()
    if not question:
        raise BrokenSample("bad-row", label, f'no question under "{names["question"]}"')
    column = names.get("answer", ANSWER_COLUMNS[0])
    answers, weights = _answers(_opened(row.get(column)), label)
    if not any(answers) and (need_answers or not is_missing(row.get(column))):
        raise BrokenSample("bad-row", label, f'no answer under "{column}"')
    given = _opened(row.get(names["weight"])) if "weight" in names else None
    if not is_missing(given):
        weights = _numbers(given if isinstance(given, list | tuple) else [given])
    if len(weights) != len(answers) or not all(weight > 0 and math.isfinite(weight) for weight in weights):
        raise BrokenSample("bad-row", label, f"the weights of {len(answers)} answers are {given or weights!r}")
    about = _about(row, names, label)
    return (json.dumps([question, answers, weights, about], ensure_ascii=False),)


def read_questions(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[GivenAnswers, ...]]:
    """Questions and the answers to each, from what `question_texts` made; a question may be there twice."""
    questions: list[str] = []
    found: list[GivenAnswers] = []
    for text in texts:
        question, answers, weights, about = json.loads(text)
        about = About(**{**about, "choices": tuple(about.get("choices", ()))})
        questions.append(question)
        found.append(GivenAnswers(tuple(answers), tuple(weights), about))
    return tuple(questions), tuple(found)


def by_question(questions: Sequence[str], given: Sequence[GivenAnswers]) -> dict[str, GivenAnswers]:
    """The answers to each question; one that was asked twice has those of both, so that each asking counts once."""
    found: dict[str, GivenAnswers] = {}
    times: dict[str, int] = {}
    for question, answers in zip(questions, given, strict=True):
        count = times.get(question, 0)
        times[question] = count + 1
        if question not in found:
            found[question] = answers
            continue
        before = found[question]
        weights = [weight * count / (count + 1) for weight in before.weights]
        weights += [weight / (count + 1) for weight in answers.weights]
        found[question] = replace(before, texts=before.texts + answers.texts, weights=tuple(weights))
    return found


def _about(row: Mapping[str, Any], names: Mapping[str, str], label: str) -> dict[str, Any]:
    """What a row says besides: the fields of `About` that it has.

    Raises:
        BrokenSample: "bad-row", choices among which the right one is not.
    """
    number, choices, correct, difficult, kind, types = (row.get(names.get(name, name)) for name in ABOUT_COLUMNS)
    choices = _opened(choices)
    choices = tuple(map(str, choices)) if isinstance(choices, list | tuple) else ()
    if choices and correct is not None and (type(correct) is not int or not 0 <= correct < len(choices)):
        raise BrokenSample("bad-row", label, f"correct_choice_idx is {correct!r:.40}, of {len(choices)} choices")
    if isinstance(types, Mapping) and "structural" in types:
        kind = "open" if types["structural"] == "query" else "binary"
    about = {
        "id": number if type(number) is int else given_id(number) or None,
        "choices": choices or None,
        "correct": correct if choices else None,
        "difficult": True if difficult is True else None,
        "kind": kind if isinstance(kind, str) else None,
    }
    return {name: value for name, value in about.items() if value is not None}


def _guess(item: Mapping[str, Any]) -> dict[str, str]:
    """Which keys of a question among others hold what."""
    guesses = {"question": QUESTION_COLUMNS, "answer": ANSWER_COLUMNS, "weight": WEIGHT_COLUMNS}
    names = {role: next((name for name in known if name in item), "") for role, known in guesses.items()}
    return {role: name or guesses[role][0] for role, name in names.items() if name or role != "weight"}


def _opened(value: Any) -> Any:
    """Lists and objects in the cell of a CSV are JSON."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            opened = json.loads(value)
        except (ValueError, RecursionError):  # other text, integers of thousands of digits
            return value
        return value if is_too_deep(opened) else opened
    return value


def _answers(value: Any, label: str) -> tuple[list[str], list[float]]:
    """Answers with their weights, from one, several, several with weights, or objects of VQA's annotations."""
    if isinstance(value, Mapping) and "answer" not in value:
        given = {str(text).strip(): weight for text, weight in value.items() if str(text).strip()}
        return list(given), _numbers(given.values())
    if is_missing(value):
        return [], []
    several: Sequence[Any] = value if isinstance(value, list | tuple) else (value,)
    cells = [item.get("answer") if isinstance(item, Mapping) else item for item in several]
    if any(map(is_missing, cells)):
        raise BrokenSample("bad-row", label, f"an answer is null: {several!r:.80}")
    texts = [_word(cell) for cell in cells]
    return texts, [1 / max(1, len(texts))] * len(texts)


def _word(value: Any) -> str:
    """An answer as text: true is "yes", 2.0 (as pandas writes 2 beside a missing value) is "2"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _numbers(values: Iterable[Any]) -> list[float]:
    """Weights as numbers, NaN for what is none."""
    found = []
    for value in values:
        try:
            found.append(float(value))
        except (TypeError, ValueError, OverflowError):
            found.append(math.nan)
    return found
