"""How well scores part two classes: ROC AUC and average precision.

Used where a matching head must tell true pairs from false ones: no threshold is chosen, ties are shared fairly.

    roc_auc(probabilities, is_match), average_precision(probabilities, is_match)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.core.errors import UserError

__all__ = ["average_precision", "roc_auc"]


def _checked(scores: ArrayLike, positive: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise UserError(f"scores {scores.shape} and labels {positive.shape} must be two lists of one length")
    if np.isnan(scores).any():
        raise UserError("some scores are not numbers; check the model's output")
    return scores, positive


def roc_auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive scores above a negative, a tie counting one half (Mann-Whitney U); both [N]."""
    scores, positive = _checked(scores, positive)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if num_positive == 0 or num_negative == 0:
        raise UserError(f"ROC AUC needs both classes; there are {num_positive} true and {num_negative} false")
    negatives = np.sort(scores[~positive])
    below = np.searchsorted(negatives, scores[positive], side="left")
    not_above = np.searchsorted(negatives, scores[positive], side="right")
    return float((below + not_above).sum() / 2 / (num_positive * num_negative))


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """Sum over thresholds of the gain in recall times the precision there, no interpolation; both [N].

    Items of one score pass the threshold together, so their order does not matter.
    """
    scores, positive = _checked(scores, positive)
    if not positive.any():
        raise UserError("average precision needs at least one true item; there is none")
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(positive[order])
    last_of_score = np.append(scores[1:] != scores[:-1], True)
    places = np.flatnonzero(last_of_score) + 1
    hits = hits[last_of_score]
    gained = np.diff(hits, prepend=0) / positive.sum()
    return float((gained * hits / places).sum())
