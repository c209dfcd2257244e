"""Accuracy of answers to questions about images, as the VQA evaluation defines it (Antol et al., ICCV 2015).

    answer_accuracy("two", ["2", "two", "3", ...])           # one question
    mean_answer_accuracy(predictions, answers)

Answers are compared by the rules of the official program, quirks included, so that figures are comparable
with published ones. One of them: it applies `normalise_answer` only where the answers to a question are not all
equal, so that "Yes." is wrong where all ten people said "yes". Other programs always normalise; that is a rule of
its own here, as are those of A-OKVQA's direct answers and of GQA, which compare answers as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from openblip.core.errors import UserError, nearest

__all__ = [
    "AS_GIVEN",
    "RULES",
    "AccuracyRule",
    "answer_accuracy",
    "exact_match",
    "mean_answer_accuracy",
    "normalise_answer",
]

AccuracyRule = Literal["official", "normalised", "direct", "exact"]
RULES: tuple[AccuracyRule, ...] = get_args(AccuracyRule)
AS_GIVEN: tuple[AccuracyRule, ...] = ("direct", "exact")
"""rules that compare answers as they are given"""

_FEW = 3
"""answers of which the share that agrees is taken: leaving one person out says nothing of so few"""
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_DIGITS)}
_ARTICLES = frozenset(("a", "an", "the"))
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS_TEXT = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_CONTRACTIONS = _CONTRACTIONS_TEXT.split()


def _missing_apostrophes() -> dict[str, str]:
    """Each contraction by its spellings that lack one apostrophe."""
    spellings = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTIONS
        for place, character in enumerate(word)
        if character == "'"
    }
    spellings["somebody'd"] = "somebodyd"  # the evaluation program has this one the wrong way round
    return spellings


_SPELLINGS = _missing_apostrophes()
_NUMBER_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32
"""that the official program drops: it gives a flag of `re` in the place of a count"""


def normalise_answer(answer: str) -> str:
    """Lower case without articles, marks and line breaks; number words as digits, apostrophes restored.

    A mark is dropped where it stands beside a blank, or anywhere if the answer has a comma between
    digits; else it becomes a blank. A full stop is kept before a digit only.
    """
    answer = _one_line(answer)
    has_number_comma = _NUMBER_COMMA.search(answer) is not None
    cleaned = answer
    for mark in _MARKS:
        beside_blank = f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if beside_blank or has_number_comma else " ")
    cleaned = _FULL_STOP.sub("", cleaned, count=_MOST_FULL_STOPS)
    words = [_NUMBERS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def answer_accuracy(prediction: str, answers: Sequence[str], *, rule: AccuracyRule = "official") -> float:
    """min(1, people who gave this answer / 3), averaged over leaving out one person at a time.

    `answers` are those of several people (ten in VQA). Where there are three or fewer, the share that agrees
    with the prediction after `normalise_answer`, so that a single true answer gives 0 or 1.

    Args:
        rule: "official" compares unanimous answers as given (line breaks, tabs and outer blanks aside) and
            others after `normalise_answer`; "normalised" compares all after it. "direct" is A-OKVQA's, min(1, equal
            answers / 3) of all people, and "exact" GQA's, the share of equal answers; both as they are given.
    """
    if rule not in RULES:
        raise UserError(f'there is no rule "{rule}" of VQA accuracy{nearest(rule, RULES)}')
    if isinstance(answers, str) or len(answers) == 0:
        raise UserError("a question has no list of answers to compare with; give at least one")
    count = len(answers)
    if rule in AS_GIVEN:
        equal = sum(answer == prediction for answer in answers)
        return min(1.0, equal / _FEW) if rule == "direct" else equal / count
    given, predicted = [_one_line(answer) for answer in answers], _one_line(prediction)
    if rule == "normalised" or count <= _FEW or len(set(given)) > 1:
        given, predicted = [normalise_answer(answer) for answer in given], normalise_answer(predicted)
    agreeing = given.count(predicted)
    if count <= _FEW:
        return agreeing / count
    # Leaving out one who agrees leaves one fewer; there are `agreeing` such ways of `count`.
    without_agreeing = min(1.0, max(0, agreeing - 1) / 3)
    return (agreeing * without_agreeing + (count - agreeing) * min(1.0, agreeing / 3)) / count


def mean_answer_accuracy(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], *, rule: AccuracyRule = "official"
) -> float:
    """Mean of `answer_accuracy` over questions, a fraction."""
    _check(predictions, answers)
    pairs = zip(predictions, answers, strict=True)
    return sum(answer_accuracy(prediction, given, rule=rule) for prediction, given in pairs) / len(predictions)


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Share of predictions that equal the one true answer after `normalise_answer`."""
    _check(predictions, answers)
    return sum(
        normalise_answer(prediction) == normalise_answer(answer)
        for prediction, answer in zip(predictions, answers, strict=True)
    ) / len(predictions)


def _check(predictions: Sequence[object], answers: Sequence[object]) -> None:
    if len(predictions) != len(answers):
        raise UserError(f"there are {len(predictions)} predictions for {len(answers)} questions; give one each")
    if not predictions:
        raise UserError("there are no questions to score")
