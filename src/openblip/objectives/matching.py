"""Image-text matching (ITM): hard negatives, drawn on the device, and the two-way loss.

Shapes: B pairs of this rank; A pairs that negatives are drawn from, those B or all ranks' W * B; 3B rows to match:
the pairs, each text with a negative image, each image with a negative text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from openblip.core.runtime import average, gather, gather_with_gradient, rank
from openblip.models.layers import ImageMemory
from openblip.objectives.configs import NEGATIVE_FLOOR

__all__ = ["AllRanks", "Negatives", "draw_negatives", "match_pairs", "matching_loss", "negative_weights"]

Match = Callable[[Tensor, Tensor, ImageMemory], Tensor]


@dataclass(frozen=True)
class Negatives:
    """For each pair of a batch one negative image and one negative text."""

    image_for_text: Tensor
    """int64 [B], index of each text's negative image, of A."""
    text_for_image: Tensor
    """int64 [B], index of each image's negative text, of A."""
    valid: Tensor
    """bool [B], False where the A pairs hold no other image; such a pair has no negatives in the loss."""

    def first(self, count: int) -> Negatives:
        """Those of the first pairs alone; they are still drawn from the whole batch."""
        return Negatives(self.image_for_text[:count], self.text_for_image[:count], self.valid[:count])


@torch.no_grad()
def negative_weights(
    similarity: Tensor,
    image_ids: Tensor | None = None,
    hard_share: float = 1.0,
    all_ids: Tensor | None = None,
    floor: float = NEGATIVE_FLOOR,
) -> Tensor:
    """Weights for drawing negatives from similarities [B, A]: softmax + `floor`, zero for the same image.

    Computed in float32; a similarity that is not finite counts as the lowest. With a floor draws become nearly
    uniform where the softmax of the own pair is near 1; without one they go by the softmax over the others. With
    `hard_share` below 1 that share of draws goes by similarity and the rest falls evenly.
    """
    similarity = torch.nan_to_num(similarity.float(), nan=-1e4, posinf=1e4, neginf=-1e4)
    if image_ids is None:
        rows, columns = similarity.shape
        every = torch.arange(columns, device=similarity.device)
        image_ids, all_ids = every[:rows] + (rank() * rows if columns > rows else 0), every
    same = image_ids[:, None] == (image_ids if all_ids is None else all_ids)[None, :]
    # Masked before the softmax where nothing is added: after it, the others might all have underflowed to zero.
    weights = F.softmax(similarity if floor else similarity.masked_fill(same, -1e5), dim=1) + floor
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
    all_ids: Tensor | None = None,
    *,
    hard_share: float = 1.0,
    floor: float = NEGATIVE_FLOOR,
    generator: torch.Generator | None = None,
) -> Negatives:
    """Draw an image for each text and a text for each image, in proportion to similarity.

    Args:
        similarity_t2i: texts against images [B, A], divided by the temperature.
        similarity_i2t: images against texts [B, A].
        image_ids: int64 [B]; equal ids are never each other's negatives.
        all_ids: int64 [A], needed with `image_ids` where A is more than B.
        hard_share: share of the draws that goes by similarity, the rest evenly; 1 in the papers.
        floor: as of `negative_weights`.
    """
    weights_t2i = negative_weights(similarity_t2i, image_ids, hard_share, all_ids, floor)
    weights_i2t = negative_weights(similarity_i2t, image_ids, hard_share, all_ids, floor)
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


@dataclass(frozen=True)
class AllRanks:
    """What a rank needs of the others to match with their pairs; building it waits for the device."""

    input_ids: Tensor
    """[A, T], T that of the longest text of all ranks"""
    attention_mask: Tensor
    image_embeds: Tensor
    """[A, N, Dv], with gradient to the ranks they come from"""
    remember: Callable[[Tensor], ImageMemory]

    @classmethod
    def gather(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_embeds: Tensor,
        remember: Callable[[Tensor], ImageMemory],
    ) -> AllRanks:
        """From this rank's ids [B, T], mask and image_embeds [B, N, Dv]; every rank must call."""
        width = torch.tensor(input_ids.shape[1], device=input_ids.device)
        dist.all_reduce(width, dist.ReduceOp.MAX)
        padding = (0, int(width) - input_ids.shape[1])
        texts = gather(F.pad(input_ids, padding)), gather(F.pad(attention_mask, padding))
        return cls(*texts, gather_with_gradient(image_embeds), remember)


def match_pairs(
    match: Match,
    input_ids: Tensor,
    attention_mask: Tensor,
    memory: ImageMemory,
    negatives: Negatives,
    all_ranks: AllRanks | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy over the pairs, each text with a negative image, each image with a negative text.

    Args:
        match: the model's, from ids [R, T], mask and memory to logits [R, 2].
        input_ids: [B, T], beginning as the model's texts for ITM do.
        memory: of the B images.
        negatives: of P pairs, the first of the batch (all, or `Negatives.first`): 3P rows are read.
        all_ranks: where negatives were drawn from all ranks; the memory of P negative images is projected.

    Returns:
        two scalars, means over the rows of all ranks.
    """
    batch, pairs = len(input_ids), len(negatives.valid)
    own = own_texts = torch.arange(pairs, device=input_ids.device)
    far = negatives.image_for_text
    if all_ranks is not None:
        memory = memory.join(all_ranks.remember(all_ranks.image_embeds[far]))
        input_ids, attention_mask = all_ranks.input_ids, all_ranks.attention_mask
        own_texts, far = own + rank() * batch, own + batch
    texts = torch.cat((own_texts, own_texts, negatives.text_for_image))
    images = torch.cat((own, far, own))
    # A gather of what is projected already: no image of this rank is projected again for its negatives.
    logits = match(input_ids[texts], attention_mask[texts], memory.select(images))
    with torch.no_grad():
        counted = torch.cat((torch.ones_like(negatives.valid), negatives.valid, negatives.valid))
        right = (logits.argmax(1) == 1) == (torch.arange(3 * pairs, device=logits.device) < pairs)
        num_rows = average(counted.sum().float())
        accuracy = (right & counted).sum() / num_rows
    return matching_loss(logits, negatives.valid, num_rows), accuracy
