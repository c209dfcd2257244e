"""The rules on next-token scores, counted by hand, and the seeded draw against the distribution it claims."""

from __future__ import annotations

import pytest
import torch

from openblip.generation import rules
from openblip.generation.rules import History


def history_of(*rows: list[int], width: int | None = None) -> History:
    width = width or max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), True
    return History.from_prompts(ids, mask)


def test_prompts_are_aligned_to_the_right() -> None:
    history = history_of([5, 6, 7], [8])
    assert history.tokens[:, -1].tolist() == [7, 8]
    assert history.real.tolist() == [[True, True, True], [False, False, True]]
    longer = history.append(torch.tensor([1, 2])).select(torch.tensor([1, 1]))
    assert longer.tokens[longer.real].tolist() == [8, 2, 8, 2]


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores_once() -> None:
    scores = torch.tensor([[4.0, -4.0, 2.0, 1.0], [4.0, -4.0, 2.0, 1.0]])
    result = rules.penalise_repetition(scores, history_of([1, 2, 1], [3]), 2.0)
    # Token 0 fills the padding of the second row and must stay as it is.
    assert result.tolist() == [[4.0, -8.0, 1.0, 1.0], [4.0, -4.0, 2.0, 0.5]]
    assert scores[0, 1] == -4.0, "the model's own scores are kept"


def test_ngrams_that_occurred_are_forbidden() -> None:
    scores = torch.zeros(3, 6)
    history = history_of([1, 2, 3, 1, 2], [1, 2], [2, 2, 2])
    banned = rules.forbid_repeated_ngrams(scores, history, 3).isinf()
    assert banned.nonzero().tolist() == [[0, 3], [2, 2]]
    banned = rules.forbid_repeated_ngrams(scores, history, 1).isinf()
    assert banned.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [2, 2]]
    assert not rules.forbid_repeated_ngrams(scores, history, 6).isinf().any()


def test_padding_is_no_part_of_an_ngram() -> None:
    history = history_of([0, 0, 4, 0], [4, 0], width=6)
    banned = rules.forbid_repeated_ngrams(torch.zeros(2, 5), history, 2).isinf()
    assert banned.nonzero().tolist() == [[0, 0], [0, 4]]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.7},
        {"top_k": 4, "top_p": 0.6, "temperature": 2.0},
    ],
    ids=str,
)
def test_draws_follow_the_truncated_distribution(settings: dict) -> None:
    """Evenly spaced uniforms must give each token in proportion to its probability, to one count."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    scores = torch.tensor([0.3, 2.0, -1.0, 1.1, float("-inf"), 1.2, 0.1])
    expected = torch.softmax(scores / settings["temperature"], dim=-1)
    order = expected.argsort(descending=True)
    if settings["top_k"]:
        expected[order[settings["top_k"] :]] = 0
        expected /= expected.sum()
    if settings["top_p"] < 1:
        reached = 0.0
        for token in order:
            if reached >= settings["top_p"]:
                expected[token] = 0
            reached += float(expected[token])
    expected /= expected.sum()
    count = 4000
    uniforms = (torch.arange(count) + 0.5) / count
    drawn = rules.draw(scores.expand(count, -1), uniforms, **settings)
    counts = torch.bincount(drawn, minlength=7)
    assert (counts - expected * count).abs().max() <= 1.01
    assert ((counts == 0) == (expected * count < 0.5)).all()


def test_extreme_uniforms_never_draw_the_impossible() -> None:
    scores = torch.full((2, 5000), float("-inf"))
    scores[:, 17], scores[:, 18] = 1.0, 1.0
    almost_one = 1 - 2.0**-24
    for top_p in (1.0, 0.9):
        drawn = rules.draw(scores, torch.tensor([0.0, almost_one]), temperature=1.0, top_k=0, top_p=top_p)
        assert sorted(drawn.tolist()) == [17, 18]


def test_the_head_of_the_vocabulary_gives_what_a_full_sort_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row is peaked (its head is enough), one is flat (it is not): both equal the full sort."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 6000, generator=generator)
    uniforms = torch.rand(40, generator=generator)
    for scores in (noise * 5, noise * 0.1):
        quick = rules.draw(scores, uniforms, temperature=1.0, top_k=0, top_p=0.9)
        with monkeypatch.context() as patch:
            patch.setattr(rules, "SORTED_HEAD", 6000)
            full = rules.draw(scores, uniforms, temperature=1.0, top_k=0, top_p=0.9)
        assert torch.equal(quick, full)


def test_a_nucleus_does_not_depend_on_the_neighbours() -> None:
    """Scores of bfloat16 are often equal; a peaked row beside a flat one is cut and drawn as alone."""
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(40, generator=generator)
    scores = (torch.randn(40, 30_000, generator=generator) * 4).bfloat16().float()
    scores[::2] *= 0.02  # the head is not enough for these
    together = rules.draw(scores, uniforms, temperature=1.0, top_k=0, top_p=0.9)
    alone = [
        rules.draw(scores[row, None], uniforms[row, None], temperature=1.0, top_k=0, top_p=0.9) for row in range(40)
    ]
    assert together.tolist() == torch.cat(alone).tolist()


def test_uniforms_belong_to_seed_key_sequence_and_step() -> None:
    keys = torch.tensor([3, 10**15, -4])
    numbers = rules.row_uniforms(0, keys, 2, 500)
    assert numbers.shape == (6, 500)
    assert torch.equal(numbers[2:4], rules.row_uniforms(0, keys[1:2], 2, 500))
    assert torch.equal(numbers[:, :50], rules.row_uniforms(0, keys, 2, 50))
    assert torch.equal(numbers[0:6:2], rules.row_uniforms(0, keys, 1, 500))
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_uniforms_are_uniform_and_unrelated() -> None:
    """32,000 numbers of neighbouring seeds, keys, sequences and steps: mean, spread, correlation, cells."""
    numbers = torch.stack([rules.row_uniforms(seed, torch.arange(40), 5, 40) for seed in range(4)])
    numbers = numbers.view(4, 40, 5, 40).double()
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 1 / 12) < 0.005
    cells = torch.bincount((numbers.reshape(-1) * 20).long(), minlength=20).double()
    expected = numbers.numel() / 20
    assert ((cells - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees: 43.8 is exceeded 0.1%
    centred = numbers - 0.5
    for axis in range(4):
        neighbours = (centred * centred.roll(1, dims=axis)).mean() * 12
        assert abs(neighbours) < 0.03
    assert len(numbers.reshape(-1).unique()) > 31_900
