"""Accuracy, consistency and standard error of NLVR2's judgements."""

from __future__ import annotations

import numpy as np
import pytest

from openblip.core.errors import UserError
from openblip.metrics.nlvr import judgement_scores


def test_accuracy_and_consistency() -> None:
    """Statement a right for both of its pairs, b for one of two, c for its only one, d for none of two."""
    labels = [True, False, True, True, False, True, False]
    predictions = [True, False, True, False, False, False, True]
    scores = judgement_scores(predictions, labels, ["a", "a", "b", "b", "c", "d", "d"])
    assert scores["accuracy"] == pytest.approx(4 / 7)
    assert scores["consistency"] == pytest.approx(2 / 4)


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    labels, predictions, groups = rng.integers(2, size=60), rng.integers(2, size=60), rng.integers(12, size=60)
    order = rng.permutation(60)
    first = judgement_scores(predictions, labels, groups.tolist())
    assert judgement_scores(predictions[order], labels[order], groups[order].tolist()) == pytest.approx(first)


def test_the_standard_error_is_that_of_independent_statements() -> None:
    """Six pairs of a statement that are always judged alike carry the information of one."""
    rng = np.random.default_rng(1)
    right = rng.integers(2, size=200).astype(bool)
    alone = judgement_scores(right, np.ones(200), range(200))
    assert alone["standard_error"] == pytest.approx(right.std(ddof=1) / 200**0.5)
    six = judgement_scores(right.repeat(6), np.ones(1200), np.arange(200).repeat(6).tolist())
    assert six["standard_error"] == pytest.approx(alone["standard_error"])
    assert six["consistency"] == alone["accuracy"]
    assert judgement_scores([True, False], [True, True], ["a", "a"])["standard_error"] == 0.0


def test_the_standard_error_holds_in_simulation() -> None:
    rng = np.random.default_rng(2)
    groups = np.arange(50).repeat(4)
    runs = []
    for _ in range(400):
        chance = rng.beta(2, 1, size=50).repeat(4)
        runs.append(judgement_scores(rng.random(200) < chance, np.ones(200), groups.tolist()))
    spread = np.std([run["accuracy"] for run in runs])
    assert np.mean([run["standard_error"] for run in runs]) == pytest.approx(spread, rel=0.15)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(UserError, match="there is none"):
        judgement_scores([], [], [])
    with pytest.raises(UserError, match="lists of one length"):
        judgement_scores([True], [True, False], ["a"])
