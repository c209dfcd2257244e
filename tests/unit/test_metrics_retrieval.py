"""Retrieval and two-class measures on matrices small enough to count by eye."""

from __future__ import annotations

import numpy as np
import pytest

from openblip.core.errors import UserError
from openblip.metrics.retrieval import ndcg, rank_of_relevant, rank_scores, retrieval_scores
from openblip.metrics.scores import average_precision, roc_auc

# Four images, seven texts: image 0 has texts 0 and 1, image 1 has 2 and 3, image 2 has 4 and 5, image 3 has 6.
TEXT_IMAGE = [0, 0, 1, 1, 2, 2, 3]
SIMILARITY = np.array(
    [
        # t0  t1  t2  t3  t4  t5  t6
        [0.9, 0.2, 0.3, 0.1, 0.0, 0.0, 0.0],  # best own text is first
        [0.8, 0.7, 0.1, 0.6, 0.0, 0.5, 0.0],  # own texts at places 6 and 3
        [0.0, 0.9, 0.9, 0.9, 0.8, 0.1, 0.9],  # best own text at place 5
        [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],  # all alike: the worst place, 7
    ]
)
IMAGE_TO_TEXT = [1, 3, 5, 7]
# t0: 0.9 first. t1: 0.2 behind 0.9, 0.7. t2: 0.1 behind 0.9, 0.3 and level with image 3. t3: 0.6 behind 0.9.
# t4: 0.8 first. t5: 0.1 behind 0.5, level with image 3. t6: 0.1 behind 0.9.
TEXT_TO_IMAGE = [1, 3, 4, 2, 1, 3, 2]


def test_ranks_counted_by_eye() -> None:
    relevant = np.array(TEXT_IMAGE)[None, :] == np.arange(4)[:, None]
    assert rank_of_relevant(SIMILARITY, relevant).tolist() == IMAGE_TO_TEXT
    assert rank_of_relevant(SIMILARITY.T, relevant.T).tolist() == TEXT_TO_IMAGE


def test_recalls_counted_by_eye() -> None:
    measures = retrieval_scores(SIMILARITY, TEXT_IMAGE, depths=(1, 3, 5))
    to_text, to_image = measures["image_to_text"], measures["text_to_image"]
    assert [to_text[f"recall@{depth}"] for depth in (1, 3, 5)] == [1 / 4, 2 / 4, 3 / 4]
    assert [to_image[f"recall@{depth}"] for depth in (1, 3, 5)] == pytest.approx([2 / 7, 6 / 7, 1.0])
    assert measures["mean_recall"] == pytest.approx((0.25 + 0.5 + 0.75 + 2 / 7 + 6 / 7 + 1) / 6)
    assert (to_text["mean_rank"], to_text["median_rank"]) == (4.0, 4.0)
    assert (to_image["mean_rank"], to_image["median_rank"]) == (pytest.approx(16 / 7), 2.0)
    assert to_text["mean_reciprocal_rank"] == pytest.approx((1 + 1 / 3 + 1 / 5 + 1 / 7) / 4)


def test_a_model_that_says_nothing_finds_nothing() -> None:
    measures = retrieval_scores(np.zeros((20, 20)), np.arange(20))
    assert measures["mean_recall"] == 0.0


def test_images_without_a_text_are_distractors() -> None:
    """Image 1 has no text: it takes part in text-to-image and asks no question of its own."""
    measures = retrieval_scores([[0.5, 0.1], [0.9, 0.0], [0.2, 0.3]], [0, 2], depths=(1,))
    assert measures["text_to_image"]["recall@1"] == 0.5
    assert measures["image_to_text"]["recall@1"] == 1.0


def test_ndcg_by_hand() -> None:
    """Three relevant of five, so the first three places count: gains 0.5, 0, 1 against 1, 0.5, 0.2."""
    relevance = [[0.5, 0.0, 1.0, 0.2, 0.0]]
    scores = [[5.0, 4.0, 3.0, 2.0, 1.0]]
    expected = (0.5 + 1 / 2) / (1 + 0.5 / np.log2(3) + 0.2 / 2)
    assert ndcg(scores, relevance)[0] == pytest.approx(expected)
    assert ndcg(relevance, relevance)[0] == pytest.approx(1.0)
    assert ndcg([[1.0] * 5], relevance)[0] < 0.3, "of equal scores the less relevant stand first"
    assert np.isnan(ndcg(scores, [[0.0] * 5])[0])


def test_roc_auc_by_hand() -> None:
    assert roc_auc([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]) == 0.75
    assert roc_auc([0.5, 0.5, 0.5], [1, 0, 1]) == 0.5
    assert roc_auc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert roc_auc([1, 2, 3, 4], [1, 1, 0, 0]) == 0.0


def test_roc_auc_equals_counting_pairs() -> None:
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 9, 200), generator.random(200) < 0.3
    pairs = np.sign(scores[positive][:, None] - scores[~positive][None, :])
    assert roc_auc(scores, positive) == pytest.approx((pairs.mean() + 1) / 2)


def test_average_precision_by_hand() -> None:
    """True items at places 1 and 3: precision 1 and 2/3. Tied items pass together: 2 of 3 at once."""
    assert average_precision([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([0.5, 0.5, 0.5], [1, 0, 1]) == pytest.approx(2 / 3)
    assert average_precision([3, 2, 1], [1, 1, 0]) == 1.0


def test_what_cannot_be_measured_is_named() -> None:
    with pytest.raises(UserError, match="outside"):
        retrieval_scores(np.zeros((2, 2)), [0, 2])
    with pytest.raises(UserError, match="one image named for each text"):
        retrieval_scores(np.zeros((2, 3)), [0, 1])
    with pytest.raises(UserError, match="not numbers"):
        retrieval_scores(np.full((2, 2), np.nan), [0, 1])
    with pytest.raises(UserError, match="query 1 has no relevant"):
        rank_of_relevant(np.zeros((2, 2)), [[True, False], [False, False]])
    with pytest.raises(UserError, match="no queries"):
        rank_scores([])
    with pytest.raises(UserError, match="both classes"):
        roc_auc([1, 2], [1, 1])
    with pytest.raises(UserError, match="one length"):
        roc_auc([1, 2], [1])
    with pytest.raises(UserError, match="at least one true"):
        average_precision([1, 2], [0, 0])
