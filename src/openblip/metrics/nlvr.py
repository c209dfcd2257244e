"""Accuracy and consistency of statements judged true or false, as NLVR2 defines them (Suhr et al., ACL 2019).

    judgement_scores(predictions, labels, groups)   # {"accuracy": 0.8, "consistency": 0.5, "standard_error": 0.02}

A statement was written for several pairs of images. Consistency is the share of statements that are judged right
for all of their pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from openblip.core.errors import UserError

__all__ = ["judgement_scores"]


def judgement_scores(predictions: ArrayLike, labels: ArrayLike, groups: Sequence[Hashable]) -> dict[str, float]:
    """Accuracy, consistency, and the standard error of the accuracy; all [N].

    The standard error takes the pairs of one statement as dependent: it is that of a mean over statements
    (Liang and Zeger 1986), zero where there is one statement alone.

    Args:
        groups: equal for all pairs that a statement was written for.

    Raises:
        UserError: nothing was judged, or the lists differ in length.
    """
    predicted, right = np.asarray(predictions, dtype=bool), np.asarray(labels, dtype=bool)
    if predicted.ndim != 1 or predicted.shape != right.shape or len(groups) != len(right):
        raise UserError(
            f"predictions {predicted.shape}, labels {right.shape} and groups ({len(groups)},) must be "
            "lists of one length"
        )
    if not len(right):
        raise UserError("accuracy needs at least one judgement; there is none")
    correct = (predicted == right).astype(np.float64)
    numbers: dict[Hashable, int] = {}
    owner = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    sizes, hits = np.bincount(owner), np.bincount(owner, weights=correct)
    accuracy = float(correct.mean())
    count = len(sizes)
    spread = float(np.square(hits - accuracy * sizes).sum()) * count / max(count - 1, 1)
    return {
        "accuracy": accuracy,
        "consistency": float((hits == sizes).mean()),
        "standard_error": spread**0.5 / len(right),
    }
