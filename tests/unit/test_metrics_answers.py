"""VQA accuracy: normalisation by example and accuracy against the definition written as a loop."""

from __future__ import annotations

import random

import pytest

from openblip.core.errors import UserError
from openblip.metrics.answers import answer_accuracy, exact_match, mean_answer_accuracy, normalise_answer


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Red Dog", "red dog"),
        ("two", "2"),
        ("None", "0"),
        ("ten of them", "10 of them"),
        ("isnt it", "isn't it"),
        ("couldnt've", "couldn't've"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        (".5 m.", ".5 m"),
        ("1,000", "1000"),  # a comma between digits: every mark is dropped
        ("t-shirt", "t shirt"),  # a mark between letters becomes a blank
        ("black & white", "black & white"),
        ("what? - no", "what no"),  # beside a blank it is dropped
        ("black/white", "black white"),
        ("a\nb\tc ", "b c"),
        ("10:30", "10:30"),
        ("it's", "it's"),
        ("an", ""),
    ],
)
def test_normal_form(answer: str, normal: str) -> None:
    assert normalise_answer(answer) == normal


def test_accuracy_is_the_mean_over_nine_of_ten() -> None:
    generator = random.Random(0)
    for _ in range(300):
        answers = [generator.choice("uvw") for _ in range(10)]
        accuracies = [
            min(1, sum(other == "u" for place, other in enumerate(answers) if place != left_out) / 3)
            for left_out in range(10)
        ]
        assert answer_accuracy("u", answers) == pytest.approx(sum(accuracies) / 10)


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_known_accuracies(agreeing: int, accuracy: float) -> None:
    assert answer_accuracy("dog", ["a dog"] * agreeing + ["cat"] * (10 - agreeing)) == pytest.approx(accuracy)


def test_few_answers_count_by_share() -> None:
    assert answer_accuracy("Red!", ["red"]) == 1.0
    assert answer_accuracy("red", ["blue"]) == 0.0
    assert answer_accuracy("red", ["red", "blue"]) == 0.5


def test_means() -> None:
    assert mean_answer_accuracy(["2", "dog"], [["two"] * 10, ["cat"] * 10]) == 0.5
    assert exact_match(["two", "dog", "the cat"], ["2", "cat", "cat"]) == pytest.approx(2 / 3)


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(UserError, match="at least one"):
        answer_accuracy("a", [])
    with pytest.raises(UserError, match="list of answers"):
        answer_accuracy("a", "abc")
    with pytest.raises(UserError, match="one each"):
        exact_match(["a"], [])
    with pytest.raises(UserError, match="no questions"):
        mean_answer_accuracy([], [])
