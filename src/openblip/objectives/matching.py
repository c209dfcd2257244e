"""Image-text matching (ITM): hard negatives, drawn on the device, and the two-way loss.

Shapes: B pairs; 3B rows to match: the pairs, each text with a negative image, each image with a negative text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.core.runtime import average
from openblip.models.layers import ImageMemory

__all__ = ["Negatives", "draw_negatives", "match_pairs", "matching_loss", "negative_weights"]

Match = Callable[[Tensor, Tensor, ImageMemory], Tensor]


@dataclass(frozen=True)
class Negatives:
    """For each pair of a batch one negative image and one negative text."""

    image_for_text: Tensor
    """int64 [B], index of each text's negative image."""
    text_for_image: Tensor
    """int64 [B], index of each image's negative text."""
    valid: Tensor
    """bool [B], False where the batch holds no other image; such a pair has no negatives in the loss."""

    def first(self, count: int) -> Negatives:
        """Those of the first pairs alone; they are still drawn from the whole batch."""
        return Negatives(self.image_for_text[:count], self.text_for_image[:count], self.valid[:count])


@torch.no_grad()
def negative_weights(similarity: Tensor, image_ids: Tensor | None = None, hard_share: float = 1.0) -> Tensor:
    """Weights for drawing negatives from similarities [B, B]: softmax + 1e-4, zero for the same image.

    Computed in float32; the small constant keeps every other pair drawable even when softmax underflows,
    and a similarity that is not finite counts as the lowest. With `hard_share` below 1 that share of draws goes by
    similarity and the rest falls evenly.
    """
    similarity = torch.nan_to_num(similarity.float(), nan=-1e4, posinf=1e4, neginf=-1e4)
    weights = F.softmax(similarity, dim=1) + 1e-4
    if image_ids is None:
        same = torch.eye(len(weights), dtype=torch.bool, device=weights.device)
    else:
        same = image_ids[:, None] == image_ids[None, :]
    weights = weights.masked_fill(same, 0.0)
    if hard_share == 1.0:
        return weights
    others = (~same).float()
    hard = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return hard_share * hard + (1 - hard_share) * others / others.sum(1, keepdim=True).clamp(min=1.0)


@torch.no_grad()
def draw_negatives(
    similarity_t2i: Tensor,
    similarity_i2t: Tensor,
    image_ids: Tensor | None = None,
    *,
    hard_share: float = 1.0,
    generator: torch.Generator | None = None,
) -> Negatives:
    """Draw an image for each text and a text for each image, in proportion to similarity.

    Args:
        similarity_t2i: texts against images [B, B], divided by the temperature.
        similarity_i2t: images against texts [B, B].
        image_ids: int64 [B]; equal ids are never each other's negatives.
        hard_share: share of the draws that goes by similarity, the rest evenly; 1 in the papers.
    """
    weights_t2i = negative_weights(similarity_t2i, image_ids, hard_share)
    weights_i2t = negative_weights(similarity_i2t, image_ids, hard_share)
    return Negatives(
        _draw(weights_t2i, generator),
        _draw(weights_i2t, generator),
        (weights_t2i > 0).any(1) & (weights_i2t > 0).any(1),
    )


def _draw(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    # The smallest of exponential times with rates w falls on i with probability w_i / sum(w): what
    # torch.multinomial computes, but a row of zeros is no error and nothing waits for the device.
    times = torch.empty_like(weights).exponential_(generator=generator)
    return (weights / times).argmax(1)


def matching_loss(logits: Tensor, valid: Tensor, num_rows: Tensor | None = None) -> Tensor:
    """Two-way cross-entropy over 3B rows: first the B pairs, then 2B negatives of which `valid` [B] count.

    Args:
        logits: [3B, 2], class 1 is "matched".
        num_rows: divide the sum by this scalar in place of the number of rows that count here: the mean over
            ranks, so that the mean of their losses is the mean over all rows.

    Returns:
        scalar, the mean over the rows that count.
    """
    pairs = valid.shape[0]
    assert logits.shape == (3 * pairs, 2), f"expected {3 * pairs} rows of 2 logits, got {tuple(logits.shape)}"
    labels = (torch.arange(3 * pairs, device=logits.device) < pairs).long()
    weights = torch.cat((torch.ones_like(valid), valid, valid)).float()
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (losses * weights).sum() / (weights.sum() if num_rows is None else num_rows)


def match_pairs(
    match: Match, input_ids: Tensor, attention_mask: Tensor, memory: ImageMemory, negatives: Negatives
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy over the pairs, each text with a negative image, each image with a negative text.

    Args:
        match: the model's, from ids [R, T], mask and memory to logits [R, 2].
        input_ids: [B, T], beginning as the model's texts for ITM do.
        memory: of the B images.
        negatives: of P pairs, the first of the batch (all, or `Negatives.first`): 3P rows are read.

    Returns:
        two scalars, means over the rows of all ranks.
    """
    pairs = len(negatives.valid)
    own = torch.arange(pairs, device=input_ids.device)
    texts = torch.cat((own, own, negatives.text_for_image))
    images = torch.cat((own, negatives.image_for_text, own))
    # A gather of what is projected already: no image is projected again for its negatives.
    logits = match(input_ids[texts], attention_mask[texts], memory.select(images))
    with torch.no_grad():
        counted = torch.cat((torch.ones_like(negatives.valid), negatives.valid, negatives.valid))
        right = (logits.argmax(1) == 1) == (torch.arange(3 * pairs, device=logits.device) < pairs)
        num_rows = average(counted.sum().float())
        accuracy = (right & counted).sum() / num_rows
    return matching_loss(logits, negatives.valid, num_rows), accuracy
