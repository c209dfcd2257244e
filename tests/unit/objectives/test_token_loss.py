"""The loss of chosen tokens beside that of all: value, gradient, the divisor."""

from __future__ import annotations

import pytest
import torch

from openblip.objectives import language
from openblip.objectives.language import language_loss, token_loss


@pytest.mark.parametrize("block", [2**24, 60])
@pytest.mark.parametrize("divisor", [None, torch.tensor(40.0)])
def test_it_is_the_loss_of_the_whole(
    block: int, divisor: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 29, generator=generator)
    targets = torch.randint(0, 29, (3, 6), generator=generator)
    targets[:, 0], targets[1, 3:] = -100, -100
    found = []
    for chosen in (False, True):
        given = logits.clone().requires_grad_()
        if chosen:
            at = targets[:, 1:] != -100
            loss = token_loss(given[:, :-1][at], targets[:, 1:][at], num_tokens=divisor)
        else:
            loss = language_loss(given, targets, label_smoothing=0.0, num_tokens=divisor)
        (3.0 * loss).backward()
        found.append((loss, given.grad))
    # The same float32 sums in another order.
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_its_gradient_has_the_dtype_of_the_logits() -> None:
    logits = torch.randn(5, 11, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).requires_grad_()
    loss = token_loss(logits, torch.arange(5))
    loss.backward()
    assert loss.dtype == torch.float32
    plain = logits.detach().float().requires_grad_()
    torch.nn.functional.cross_entropy(plain, torch.arange(5)).backward()
    assert logits.grad is not None and plain.grad is not None  # noqa: PT018
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad.float(), plain.grad, rtol=2e-2, atol=1e-4)  # bfloat16 has 8 bits


def test_nothing_to_predict_is_no_loss() -> None:
    loss = token_loss(torch.zeros(0, 7, requires_grad=True), torch.zeros(0, dtype=torch.int64))
    assert loss.item() == 0


def test_a_gradient_is_computed_once() -> None:
    loss = token_loss(torch.randn(3, 7, requires_grad=True), torch.arange(3))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()
