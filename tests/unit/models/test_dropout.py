"""Dropout: how often, how much, the same again by the seed, and its gradient."""

from __future__ import annotations

import pytest
import torch

from openblip.models.dropout import apply_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_zero_with_probability_p_and_the_rest_is_scaled(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(301, 1003, dtype=dtype)  # not a multiple of the four that a draw decides about
    dropped = apply_dropout(ones, p)
    assert dropped.shape == ones.shape
    assert dropped.dtype == dtype
    kept = dropped != 0
    # Standard deviation of the share: sqrt(p (1 - p) / 301,903) < 0.001.
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=0.005)
    # p is rounded to 16 bits, and in bfloat16 the scale too.
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 1 / (1 - p)), rtol=4e-3, atol=0)
    for axis in (0, 1):  # no row or column is treated otherwise than the rest
        share = kept.float().mean(axis)
        deviation = (p * (1 - p) / kept.shape[axis]) ** 0.5
        assert float((share - (1 - p)).abs().max()) < 6 * deviation
    neighbours = (kept[:, 1:] == kept[:, :-1]).float().mean()  # independent of each other
    assert float(neighbours) == pytest.approx(p * p + (1 - p) ** 2, abs=0.005)


def test_draws_follow_the_seed_and_go_on() -> None:
    x = torch.randn(5, 7, 3)
    torch.manual_seed(1)
    first, second = apply_dropout(x, 0.5), apply_dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(apply_dropout(x, 0.5), first)
    assert not torch.equal(first, second)


def test_the_gradient_is_that_of_what_was_kept() -> None:
    x = torch.randn(6, 50, requires_grad=True)
    dropped = apply_dropout(x, 0.25)
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad * x.detach(), dropped.detach())


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_without_a_probability_or_in_evaluation(p: float, training: bool) -> None:
    x = torch.randn(4, 4)
    assert torch.equal(apply_dropout(x, p, training), x)


@pytest.mark.parametrize("p", [0.0004, 0.9999, 0.999995])
def test_rare_probabilities_keep_the_mean(p: float) -> None:
    torch.manual_seed(0)
    count = 2**22
    dropped = apply_dropout(torch.ones(count), p)
    deviation = (p / (1 - p) / count) ** 0.5  # of the mean of what is 0 or 1 / (1 - p)
    assert float(dropped.mean()) == pytest.approx(1, abs=6 * deviation)
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=1e-4)


def test_what_is_no_probability_is_refused_as_torch_does() -> None:
    assert not apply_dropout(torch.ones(10), 1.0).any()
    with pytest.raises(ValueError, match="probability"):
        apply_dropout(torch.ones(10), 1.5)


def test_elements_that_do_not_lie_in_order_and_none_at_all() -> None:
    x = torch.ones(40, 30).t()
    assert apply_dropout(x, 0.5).shape == (30, 40)
    assert apply_dropout(torch.ones(0, 3), 0.5).shape == (0, 3)
