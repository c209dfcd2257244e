"""Language modelling (LM): predict each token of a caption from the image and the tokens before it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["IGNORED", "language_loss", "language_targets", "token_loss"]

_BLOCK = 2**22
"""logits that are in float32 at once; on a CPU larger blocks leave its caches"""

IGNORED = -100


def language_targets(input_ids: Tensor, attention_mask: Tensor, prompt_length: int = 0) -> Tensor:
    """Targets [R, T] for ids [R, T]: padding and the first `prompt_length` tokens carry no loss."""
    targets = input_ids.masked_fill(~attention_mask, IGNORED)
    if prompt_length:
        targets = targets.clone()
        targets[:, :prompt_length] = IGNORED
    return targets


def language_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.1,
    per_text: bool = False,
    num_tokens: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of the next token.

    Args:
        logits: [R, T, V]; those at position t predict target t + 1, here and nowhere else is the shift made.
        targets: int64 [R, T], -100 where nothing is to be predicted.
        label_smoothing: 0.1 in BLIP's training; 0 gives the negative log-likelihood.
        per_text: sum over the tokens of each text, [R], instead of the mean over all tokens, a scalar.
        num_tokens: divide the sum by this scalar in place of the number of tokens here: the mean over ranks and
            micro-batches that hold unequally many, so that the mean of their losses is the mean over all tokens.
    """
    shifted, wanted = logits[:, :-1].float(), targets[:, 1:]
    losses = F.cross_entropy(
        shifted.reshape(-1, shifted.shape[-1]),
        wanted.reshape(-1),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="none" if per_text else "sum",
    )
    if per_text:
        return losses.view(wanted.shape).sum(1)
    count = (wanted != IGNORED).sum() if num_tokens is None else num_tokens
    return losses / count.clamp(min=1)


def token_loss(logits: Tensor, targets: Tensor, *, num_tokens: Tensor | None = None) -> Tensor:
    """Cross-entropy of chosen tokens, a scalar: that of `language_loss` where the choice is made before the head.

    Args:
        logits: [S, V]; row s predicts target s.
        targets: int64 [S].
        num_tokens: as for `language_loss`.
    """
    total: Tensor = _SummedLoss.apply(logits, targets)
    return total / (max(len(targets), 1) if num_tokens is None else num_tokens.clamp(min=1))


class _SummedLoss(torch.autograd.Function):
    """Cross-entropy summed over rows, its gradient computed beside it, block by block.

    torch keeps the logits of a language model's vocabulary three times in float32; here they and their gradient
    are kept once each, in their own dtype; the backward scales the gradient in place.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        rows = max(1, _BLOCK // logits.shape[1])
        for start in range(0, len(logits), rows):
            block = slice(start, start + rows)
            wanted = targets[block, None]
            scores = logits[block].float().log_softmax(-1)
            total -= scores.gather(1, wanted).sum()
            if grad is not None:
                grad[block] = scores.exp_().scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=scores.dtype))
        ctx.grad = grad
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor, None]:
        grad, ctx.grad = ctx.grad, None
        if grad is None:
            raise RuntimeError("the gradient of token_loss is computed once, in place: compute the loss again")
        return grad.mul_(of_total.to(grad.dtype)), None
