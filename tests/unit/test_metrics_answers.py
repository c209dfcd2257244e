"""VQA accuracy: normalisation by example and accuracy against the definition written as a loop."""

from __future__ import annotations

import json
import random
from pathlib import Path

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
    answers = ["a dog"] * agreeing + ["cat"] * (10 - agreeing)
    assert answer_accuracy("dog", answers, rule="normalised") == pytest.approx(accuracy)
    assert answer_accuracy("a dog", answers) == pytest.approx(accuracy)


TEN_YES = ("yes",) * 10


@pytest.mark.parametrize(
    ("prediction", "answers", "official", "normalised"),
    [
        # All ten are equal: the official program compares as given, but for line breaks, tabs and outer blanks.
        ("Yes.", TEN_YES, 0.0, 1.0),
        ("Yes", TEN_YES, 0.0, 1.0),
        ("yes", TEN_YES, 1.0, 1.0),
        (" yes\n", TEN_YES, 1.0, 1.0),
        ("no", TEN_YES, 0.0, 0.0),
        ("", TEN_YES, 0.0, 0.0),
        ("Yes", (*("yes",) * 9, " yes\t"), 0.0, 1.0),
        ("yes", (*("yes",) * 9, "yes\n"), 1.0, 1.0),
        ("2", ("two",) * 10, 0.0, 1.0),
        ("two", ("two",) * 10, 1.0, 1.0),
        ("dog", ("a dog",) * 10, 0.0, 1.0),
        ("a dog", ("a dog",) * 10, 1.0, 1.0),
        ("t shirt", ("t-shirt",) * 10, 0.0, 1.0),
        ("0", ("none",) * 10, 0.0, 1.0),
        ("3.5.", ("3.5",) * 10, 0.0, 1.0),
        ("dont know", ("don't know",) * 10, 0.0, 1.0),
        ("black cat", ("black\tcat",) * 10, 1.0, 1.0),
        ("Yes", ("yes",) * 4, 0.0, 1.0),
        # They differ, if only in case: all are normalised.
        ("YES!", (*("yes",) * 9, "Yes"), 1.0, 1.0),
        ("Yes.", (*("yes",) * 9, "no"), 1.0, 1.0),
        ("2", (*("two",) * 9, "2"), 1.0, 1.0),
        ("the dog", (*("a dog",) * 5, *("dog",) * 5), 1.0, 1.0),
        ("0", (*("none",) * 9, "nothing"), 1.0, 1.0),
        ("t shirt", (*("t-shirt",) * 6, *("shirt",) * 4), 1.0, 1.0),
        ("Two.", (*("two",) * 4, *("2",) * 3, *("three",) * 3), 1.0, 1.0),
        # One: (1 x 0 + 9 x 1/3) / 10; two: (2 x 1/3 + 8 x 2/3) / 10; three: (3 x 2/3 + 7 x 1) / 10.
        ("Red", ("red", *("blue",) * 9), 0.3, 0.3),
        ("Red", (*("red",) * 2, *("blue",) * 8), 0.6, 0.6),
        ("Red", (*("red",) * 3, *("blue",) * 7), 0.9, 0.9),
        ("Red", (*("red",) * 4, *("blue",) * 6), 1.0, 1.0),
    ],
)
def test_the_official_rule(prediction: str, answers: tuple[str, ...], official: float, normalised: float) -> None:
    """Values of the official program's algorithm, worked out by hand."""
    assert answer_accuracy(prediction, answers) == pytest.approx(official)
    assert answer_accuracy(prediction, answers, rule="official") == pytest.approx(official)
    assert answer_accuracy(prediction, answers, rule="normalised") == pytest.approx(normalised)
    assert mean_answer_accuracy([prediction], [answers]) == pytest.approx(official)


def test_the_official_program_gives_the_same_numbers() -> None:
    """240 cases (unanimous ones, marks, articles, number words, empty answers) through vqaEval.py a013f00."""
    cases = json.loads((Path(__file__).resolve().parents[1] / "golden" / "vqa_accuracy.json").read_text("utf-8"))
    assert len(cases) == 240
    found = [answer_accuracy(case["prediction"], case["answers"]) for case in cases]
    assert found == pytest.approx([case["accuracy"] for case in cases], abs=1e-6)
    normalised = [answer_accuracy(case["prediction"], case["answers"], rule="normalised") for case in cases]
    assert sum(map(abs, (a - b for a, b in zip(found, normalised, strict=True)))) > 3  # the list tells them apart


@pytest.mark.parametrize(
    ("prediction", "direct", "exact"),
    [("Ride", 1.0, 0.3), ("ride", 0.0, 0.0), ("train", 2 / 3, 0.2), ("walk", 1.0, 0.5), (" walk", 0.0, 0.0)],
)
def test_direct_answers_and_exact_ones_are_compared_as_they_are(
    prediction: str, direct: float, exact: float
) -> None:
    """As allenai/aokvqa's eval_predictions.py counts: all ten, no one left out, nothing normalised."""
    answers = ("Ride",) * 3 + ("train",) * 2 + ("walk",) * 5
    assert answer_accuracy(prediction, answers, rule="direct") == pytest.approx(direct)
    assert answer_accuracy(prediction, answers, rule="exact") == pytest.approx(exact)


def test_few_answers_count_by_share() -> None:
    assert answer_accuracy("Red!", ["red"]) == 1.0
    assert answer_accuracy("red", ["blue"]) == 0.0
    assert answer_accuracy("red", ["red", "blue"]) == 0.5


def test_means() -> None:
    assert mean_answer_accuracy(["2", "dog"], [["two"] * 9 + ["3"], ["cat"] * 10]) == 0.5
    assert mean_answer_accuracy(["2", "dog"], [["two"] * 10, ["cat"] * 10]) == 0.0
    assert mean_answer_accuracy(["2", "dog"], [["two"] * 10, ["cat"] * 10], rule="normalised") == 0.5
    assert exact_match(["two", "dog", "the cat"], ["2", "cat", "cat"]) == pytest.approx(2 / 3)


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(UserError, match="at least one"):
        answer_accuracy("a", [])
    with pytest.raises(UserError, match="list of answers"):
        answer_accuracy("a", "abc")
    with pytest.raises(UserError, match=r'no rule "offical" .*official'):
        answer_accuracy("a", ["a"], rule="offical")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="one each"):
        exact_match(["a"], [])
    with pytest.raises(UserError, match="no questions"):
        mean_answer_accuracy([], [])
