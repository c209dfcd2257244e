"""NLVR2's loss: whether a statement is true of two images, as a two-way cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.tokenizer import TokenBatch
from openblip.models.nlvr import BlipNlvr

__all__ = ["NlvrObjective"]


class NlvrObjective(nn.Module):
    """An NLVR2 model with its loss (Li et al. 2022, section 5.4).

    Args:
        enc_id: id of [ENC], with which a statement begins.
    """

    def __init__(self, model: BlipNlvr, *, enc_id: int) -> None:
        super().__init__()
        self.model = model
        self.enc_id = enc_id

    def forward(
        self,
        images: Tensor,
        statements: TokenBatch,
        labels: Tensor,
        *,
        pair_of: Tensor | None = None,
        num_statements: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss of R statements about B pairs; a pair is encoded and its memory projected once for its statements.

        Args:
            images: normalised [B, 2, 3, H, W].
            statements: ids [R, T]; the first token is replaced by [ENC].
            labels: int64 [R], 1 is true.
            pair_of: int64 [R], the pair that each statement is about; None when each pair has equally many, which
                stand together.
            num_statements: divide by this scalar in place of R: the mean over ranks and micro-batches that hold
                unequally many.

        Returns:
            scalar "loss", and "accuracy": the share of statements that are judged right.
        """
        model, ids = self.model, statements.input_ids.clone()
        ids[:, 0].fill_(self.enc_id)
        memory = model.remember(model.encode_pair(images[:, 0], images[:, 1]))
        if pair_of is not None:
            memory = memory.select(pair_of)
        logits = model.classify(ids, statements.attention_mask, memory).float()
        total = F.cross_entropy(logits, labels, reduction="sum")
        loss = total / (len(labels) if num_statements is None else num_statements)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == labels).float().mean()}
