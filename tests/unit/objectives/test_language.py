"""LM against loops over tokens: the shift, the smoothing, prompts and padding without loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openblip.objectives.language import IGNORED, language_loss, language_targets


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 11, generator=generator)
    ids = torch.randint(1, 11, (3, 6), generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 3, 5])[:, None]
    return logits, ids.masked_fill(~mask, 0), mask


def loop_losses(logits: Tensor, targets: Tensor, smoothing: float) -> list[list[float]]:
    """Loss of each token that counts, row by row: (1 - s) * -log p(target) + s * mean of -log p."""
    rows = []
    for row_logits, row_targets in zip(logits, targets, strict=True):
        row = []
        for t in range(len(row_targets) - 1):
            target = int(row_targets[t + 1])
            if target != IGNORED:
                log_probs = row_logits[t].log_softmax(0)
                row.append(float(-(1 - smoothing) * log_probs[target] - smoothing * log_probs.mean()))
        rows.append(row)
    return rows


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("prompt", [0, 1, 3])
def test_against_loops(smoothing: float, prompt: int) -> None:
    logits, ids, mask = example()
    targets = language_targets(ids, mask, prompt)
    rows = loop_losses(logits, targets, smoothing)
    flat = [value for row in rows for value in row]
    loss = language_loss(logits, targets, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(sum(flat) / len(flat), rel=1e-5)
    per_text = language_loss(logits, targets, label_smoothing=smoothing, per_text=True)
    assert per_text.tolist() == pytest.approx([sum(row) for row in rows], rel=1e-5)


def test_targets_leave_padding_and_prompt_out() -> None:
    ids, mask = torch.tensor([[7, 8, 9, 0], [7, 8, 9, 4]]), torch.tensor([[True] * 3 + [False], [True] * 4])
    assert language_targets(ids, mask, 2).tolist() == [[-100, -100, 9, -100], [-100, -100, 9, 4]]
    assert ids[0, 0] == 7, "the ids themselves stay"


def test_nothing_to_predict_is_zero_with_gradient() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = language_loss(logits, torch.full((2, 3), IGNORED))
    loss.backward()
    assert float(loss) == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0
