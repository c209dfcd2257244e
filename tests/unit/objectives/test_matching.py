"""Hard negatives: never of the same image, drawn as their weights say, and never an error."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from openblip.objectives.matching import draw_negatives, matching_loss, negative_weights


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weights_are_the_softmax_and_a_little_without_the_same_image() -> None:
    similarity = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, -5.0, 0.0]])
    weights = negative_weights(similarity, torch.tensor([4, 4, 7]))
    soft = F.softmax(similarity, dim=1) + 1e-4
    wanted = soft * torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 1, 0]])
    torch.testing.assert_close(weights, wanted)
    own = negative_weights(similarity)
    torch.testing.assert_close(own, soft * (1 - torch.eye(3)))


def test_without_a_floor_a_sure_pair_leaves_its_others_as_they_are() -> None:
    """As the reference's fine-tuning for retrieval, where draws are proportional to the softmax of the others."""
    similarity = torch.tensor([[20.0, 2.0, 1.0], [0.0, 5000.0, 1.0], [0.0, 0.0, 9.0]])
    weights = negative_weights(similarity, floor=0.0)
    shares = weights / weights.sum(1, keepdim=True)
    hard, easy = math.e / (1 + math.e), 1 / (1 + math.e)
    torch.testing.assert_close(shares, torch.tensor([[0, hard, easy], [easy, 0, hard], [0.5, 0.5, 0]]))
    with_floor = negative_weights(similarity)
    assert float(with_floor[0, 1] / with_floor[0].sum()) == pytest.approx(0.5, abs=1e-3), "the floor decides there"
    alone = draw_negatives(similarity, similarity, torch.tensor([1, 1, 1]), floor=0.0)
    assert not alone.valid.any()


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_never_the_same_image(batch: int) -> None:
    """The same image gets nearly all of the softmax here, so that a draw that let it through would take it."""
    similarity = 40 * torch.eye(batch)
    for seed in range(50):
        negatives = draw_negatives(similarity, similarity, generator=generator(seed))
        assert negatives.valid.all()
        assert (negatives.image_for_text != torch.arange(batch)).all()
        assert (negatives.text_for_image != torch.arange(batch)).all()


def test_never_a_caption_of_the_same_image() -> None:
    ids = torch.tensor([3, 9, 3, 3, 9, 5])
    same = ids[:, None] == ids[None, :]
    for seed in range(50):
        negatives = draw_negatives(50 * same.float(), 50 * same.float(), ids, generator=generator(seed))
        assert negatives.valid.all()
        assert (ids[negatives.image_for_text] != ids).all()
        assert (ids[negatives.text_for_image] != ids).all()


@pytest.mark.parametrize("direction", ["image_for_text", "text_for_image"])
def test_draws_follow_the_weights(direction: str) -> None:
    """4,000 draws of one row against its weights, by chi-square with 4 degrees of freedom: a right draw fails
    with probability 0.001 over seeds, and this seed is fixed; uniform draws would give about 2,000."""
    row = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, -9.0])
    flat = torch.zeros(6)
    draws, batch = 4_000, 6
    similarity = torch.stack([row, *[flat] * (batch - 1)])
    arguments = (
        (similarity, torch.zeros(6, 6)) if direction == "image_for_text" else (torch.zeros(6, 6), similarity)
    )
    source, counts = generator(11), torch.zeros(6)
    for _ in range(draws):
        counts[getattr(draw_negatives(*arguments, generator=source), direction)[0]] += 1
    weights = negative_weights(similarity)[0]
    expected = draws * weights / weights.sum()
    assert counts[0] == 0
    # The rarest (softmax underflow, 1e-4 of weight) is hardly expected once and joined with its neighbour.
    merged = [(counts[i], expected[i]) for i in (1, 2, 4)] + [(counts[3] + counts[5], expected[3] + expected[5])]
    chi_square = sum(float((seen - wanted) ** 2 / wanted) for seen, wanted in merged)
    assert chi_square < 16.3, (counts, expected)


def test_one_seed_gives_one_draw() -> None:
    similarity = torch.randn(16, 16, generator=generator(1))
    first, again, other = (draw_negatives(similarity, similarity.T, generator=generator(s)) for s in (5, 5, 6))
    assert first.image_for_text.equal(again.image_for_text)
    assert first.text_for_image.equal(again.text_for_image)
    assert not first.image_for_text.equal(other.image_for_text)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_similarity_that_is_not_finite_is_no_error(bad: float) -> None:
    similarity = torch.randn(5, 5, generator=generator(1))
    similarity[1] = bad
    similarity[2, 3] = bad
    negatives = draw_negatives(similarity, similarity.T, generator=generator())
    assert negatives.valid.all()
    for index in (negatives.image_for_text, negatives.text_for_image):
        assert ((index >= 0) & (index < 5)).all()
        assert (index != torch.arange(5)).all()


def test_a_batch_of_one_image_has_no_negatives() -> None:
    for negatives in (
        draw_negatives(torch.zeros(1, 1), torch.zeros(1, 1)),
        draw_negatives(torch.zeros(4, 4), torch.zeros(4, 4), torch.tensor([7, 7, 7, 7])),
    ):
        assert not negatives.valid.any()
        assert ((negatives.image_for_text >= 0) & (negatives.image_for_text < 4)).all()


def test_loss_is_the_mean_over_rows_that_count() -> None:
    logits = torch.randn(9, 2, generator=generator())
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert float(matching_loss(logits, torch.tensor([True] * 3))) == pytest.approx(
        float(F.cross_entropy(logits, labels))
    )
    counted = [0, 1, 2, 3, 5, 6, 8]
    some = matching_loss(logits, torch.tensor([True, False, True]))
    assert float(some) == pytest.approx(float(F.cross_entropy(logits[counted], labels[counted])))
    none = matching_loss(logits, torch.tensor([False] * 3))
    assert float(none) == pytest.approx(float(F.cross_entropy(logits[:3], labels[:3])))


def test_rows_without_negatives_get_no_gradient() -> None:
    logits = torch.randn(6, 2, generator=generator(), requires_grad=True)
    matching_loss(logits, torch.tensor([True, False])).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum(1).gt(0).tolist() == [True, True, True, False, True, False]


def test_a_share_of_the_draws_falls_evenly() -> None:
    similarity = torch.tensor([[9.0, 8.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4, [0.0] * 4])
    hard, mixed, even = (negative_weights(similarity, hard_share=share) for share in (1.0, 0.5, 0.0))
    torch.testing.assert_close(even, (1 - torch.eye(4)) / 3)
    torch.testing.assert_close(mixed, 0.5 * hard / hard.sum(1, keepdim=True) + 0.5 * even)
    assert torch.equal(hard, negative_weights(similarity))
    ids = torch.zeros(4, dtype=torch.int64)
    assert not draw_negatives(similarity, similarity, ids, hard_share=0.5).valid.any()


def test_captions_of_an_image_on_another_rank_are_no_negatives() -> None:
    """Two pairs against six of three ranks: whatever is drawn, it is of another image."""
    ids, all_ids = torch.tensor([4, 7]), torch.tensor([4, 7, 7, 9, 4, 4])
    similarity = 50 * (ids[:, None] == all_ids).float()
    drawn = {row: set() for row in range(2)}
    for seed in range(40):
        negatives = draw_negatives(similarity, similarity, ids, all_ids, generator=generator(seed))
        for places in (negatives.image_for_text, negatives.text_for_image):
            assert (all_ids[places] != ids).all()
            for row, place in enumerate(places.tolist()):
                drawn[row].add(place)
    assert drawn == {0: {1, 2, 3}, 1: {0, 3, 4, 5}}
    weights = negative_weights(torch.zeros(2, 6))
    assert (weights == 0).nonzero().tolist() == [[0, 0], [1, 1]]
