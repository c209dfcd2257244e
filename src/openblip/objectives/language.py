"""Language modelling (LM): predict each token of a caption from the image and the tokens before it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["IGNORED", "language_loss", "language_targets"]

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
