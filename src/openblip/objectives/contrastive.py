"""Image-text contrastive learning (ITC) against momentum features and a queue.

Shapes: B pairs of this rank, W ranks, E joint width, M queue length; A = W * B + M features to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SoftTargets", "contrastive_loss", "positive_pairs", "smoothed_contrastive_loss"]


@dataclass(frozen=True)
class SoftTargets:
    """What the momentum encoders think of a batch, and whose features are compared with."""

    image_features: Tensor
    """Momentum features of this rank's images, [B, E]."""
    text_features: Tensor
    """Momentum features of this rank's texts, [B, E]."""
    all_image_features: Tensor
    """Momentum features of all ranks' images, then the queue's, [A, E]."""
    all_text_features: Tensor
    """Momentum features of all ranks' texts, then the queue's, [A, E]."""


def positive_pairs(batch_size: int, rank: int, all_size: int, device: torch.device, image_ids: Tensor | None = None,
                   all_image_ids: Tensor | None = None) -> Tensor:  # fmt: skip
    """Target distribution [B, A] of one-hots, or spread evenly over all that show the same image.

    Args:
        image_ids: int64 [B]; None makes each pair its own image.
        all_image_ids: int64 [A], in the order of the compared features; needed with `image_ids`.
    """
    if image_ids is None:
        own = torch.arange(batch_size, device=device) + rank * batch_size
        # F.one_hot would wait for the device to check the range.
        return (own[:, None] == torch.arange(all_size, device=device)[None, :]).float()
    assert all_image_ids is not None
    same = (image_ids[:, None] == all_image_ids[None, :]).float()
    return same / same.sum(1, keepdim=True)


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    targets: SoftTargets,
    positives: Tensor,
    temperature: Tensor,
    alpha: Tensor | float,
) -> Tensor:
    """ITC with momentum distillation (Li et al. 2021, ALBEF, equation 6; BLIP keeps it).

    Args:
        image_features: normalised [B, E]; `text_features` likewise.
        positives: [B, A], rows sum to one; the hard part of the targets.
        temperature: scalar.
        alpha: weight of the momentum model's own similarities in the targets, 0 to 1.

    Returns:
        the mean of image-to-text and text-to-image losses, scalar, float32.
    """
    # Similarities are divided by a temperature down to 0.001: bfloat16's 8 significant bits would not separate
    # them.
    with torch.autocast(image_features.device.type, enabled=False):
        image_features, text_features = image_features.float(), text_features.float()
        all_images, all_texts = targets.all_image_features.float(), targets.all_text_features.float()
        with torch.no_grad():
            soft_i2t = F.softmax(targets.image_features.float() @ all_texts.T / temperature, dim=1)
            soft_t2i = F.softmax(targets.text_features.float() @ all_images.T / temperature, dim=1)
            target_i2t = alpha * soft_i2t + (1 - alpha) * positives
            target_t2i = alpha * soft_t2i + (1 - alpha) * positives
        sim_i2t = image_features @ all_texts.T / temperature
        sim_t2i = text_features @ all_images.T / temperature
        loss_i2t = -(F.log_softmax(sim_i2t, dim=1) * target_i2t).sum(1).mean()
        loss_t2i = -(F.log_softmax(sim_t2i, dim=1) * target_t2i).sum(1).mean()
    return (loss_i2t + loss_t2i) / 2


def smoothed_contrastive_loss(
    similarity_i2t: Tensor, similarity_t2i: Tensor, positives: Tensor, *, label_smoothing: float = 0.1
) -> Tensor:
    """ITC among the pairs of a batch, without momentum or queue (Li et al. 2023, as its reference smooths).

    Args:
        similarity_i2t: images of this rank against all texts [B, A], divided by the temperature.
        similarity_t2i: texts of this rank against all images [B, A], likewise.
        positives: [B, A], rows sum to one.

    Returns:
        the mean of image-to-text and text-to-image losses, scalar, float32.
    """
    targets = (1 - label_smoothing) * positives + label_smoothing / positives.shape[1]
    losses = [
        -(F.log_softmax(similarity.float(), dim=1) * targets).sum(1).mean()
        for similarity in (similarity_i2t, similarity_t2i)
    ]
    return (losses[0] + losses[1]) / 2
