"""Retrieval measured from a matrix of similarities: recall, ranks, and NDCG for graded relevance.

    measures = retrieval_scores(similarity, text_image)     # [N images, M texts], image of each text
    measures["text_to_image"]["recall@1"], measures["mean_recall"]

An image may have several captions: image-to-text counts the best placed of its own, text-to-image has one
right image for each text. Ties count against the model: whatever scores as high as the right item
stands before it, so a model that scores everything alike finds nothing.

Shapes: N images, M texts, Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openblip.core.errors import UserError

__all__ = ["ndcg", "rank_of_relevant", "rank_scores", "retrieval_scores"]


def retrieval_scores(
    similarity: ArrayLike, text_image: ArrayLike, *, depths: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float] | float]:
    """Recall at each depth, mean and median rank in both directions, and the mean of all recalls.

    similarity [N, M]: higher is nearer. text_image int [M]: the image (row) that each text belongs to; images
    without a text are only distractors. Values are fractions; ranks begin at 1.
    """
    similarity, text_image = np.asarray(similarity, dtype=np.float64), np.asarray(text_image)
    if similarity.ndim != 2 or text_image.shape != (similarity.shape[1],):
        raise UserError(
            f"similarity {similarity.shape} must be [images, texts], with one image named for each text "
            f"({text_image.shape})"
        )
    if text_image.size and not 0 <= text_image.min() <= text_image.max() < similarity.shape[0]:
        raise UserError(f"text_image names images outside 0..{similarity.shape[0] - 1}")
    relevant = text_image[None, :] == np.arange(similarity.shape[0])[:, None]
    with_text = relevant.any(axis=1)
    to_text = rank_scores(rank_of_relevant(similarity[with_text], relevant[with_text]), depths=depths)
    to_image = rank_scores(rank_of_relevant(similarity.T, relevant.T), depths=depths)
    recalls = [measures[f"recall@{depth}"] for measures in (to_text, to_image) for depth in depths]
    return {"image_to_text": to_text, "text_to_image": to_image, "mean_recall": float(np.mean(recalls))}


def rank_of_relevant(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.int64]:
    """Place, from 1, of the best relevant candidate of each query, int64 [Q]; scores and relevant [Q, C].

    Irrelevant candidates of the same score stand before it. Every query needs a relevant candidate.
    """
    scores, relevant = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if np.isnan(scores).any():
        raise UserError("some scores are not numbers, so they cannot be ranked; check the model's features")
    if not relevant.any(axis=1).all():
        query = int(np.flatnonzero(~relevant.any(axis=1))[0])
        raise UserError(f"query {query} has no relevant candidate, so it has no rank; leave it out")
    if scores.shape[0] == 0:
        return np.zeros(0, dtype=np.int64)
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~relevant).sum(axis=1)


def rank_scores(ranks: ArrayLike, *, depths: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall@k for each k of `depths`, mean and median rank, mean reciprocal rank; of ranks [Q] from 1."""
    ranks = np.asarray(ranks)
    if ranks.size == 0:
        raise UserError("there are no queries to measure")
    measures = {f"recall@{depth}": float((ranks <= depth).mean()) for depth in depths}
    measures["mean_rank"] = float(ranks.mean())
    measures["median_rank"] = float(np.median(ranks))
    measures["mean_reciprocal_rank"] = float((1 / ranks).mean())
    return measures


def ndcg(scores: ArrayLike, relevance: ArrayLike) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of each query, [Q]; scores and graded relevance [Q, C].

    As the Visual Dialog challenge takes it: cut at the number of candidates of relevance above 0, gain is the
    relevance itself, discount log2(place + 1). Of equal scores the less relevant stand first. A query without
    a relevant candidate gives nan: leave it out of the mean.
    """
    scores, relevance = np.asarray(scores, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    if np.isnan(scores).any():
        raise UserError("some scores are not numbers, so they cannot be ranked; check the model's features")
    order = np.lexsort((relevance, -scores), axis=1)
    gains = np.take_along_axis(relevance, order, axis=1)
    ideal = -np.sort(-relevance, axis=1)
    places = np.arange(scores.shape[1])
    weights = np.where(places < (relevance > 0).sum(axis=1, keepdims=True), 1 / np.log2(places + 2), 0.0)
    with np.errstate(invalid="ignore"):
        return (gains * weights).sum(axis=1) / (ideal * weights).sum(axis=1)
