"""Momentum copies of the encoders, and the queue of their features (He et al. 2020, MoCo)."""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.runtime import whole
from openblip.models.blip import Blip
from openblip.models.pixels import over_frames
from openblip.models.text import TextTransformer
from openblip.models.vision import VisionEncoder

__all__ = ["FeatureQueue", "MomentumCopy"]


class MomentumCopy(nn.Module):
    """Slowly following copies of what makes ITC features: vision tower, text encoder, both projections.

    The text encoder's cross-attention is left out, since a text alone never reads it. The copies compute
    without gradient and without dropout, always.
    """

    def __init__(self, model: Blip, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        for name, module in self._online(model).items():
            momentum_copy = copy.deepcopy(module)
            if name == "text_encoder":
                for block in cast(TextTransformer, momentum_copy).text_blocks:
                    block.cross_attention = None
            self.add_module(name, momentum_copy.requires_grad_(False))
        self.eval()

    @staticmethod
    def _online(model: Blip) -> dict[str, nn.Module]:
        return {
            "vision": model.vision,
            "text_encoder": model.encoder,
            "vision_proj": model.vision_proj,
            "text_proj": model.text_proj,
        }

    def train(self, mode: bool = True) -> MomentumCopy:
        """Stay in evaluation mode whatever the parent does: targets are made without dropout."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: Blip) -> None:
        """Move every copy towards the model: m * copy + (1 - m) * model."""
        online = dict(self._pairs(model))
        copies: list[Tensor] = []
        sources: list[Tensor] = []
        for name, parameter in self.named_parameters():
            copies.append(parameter)
            # The copies are kept whole on every process, also where the model is sharded.
            sources.append(whole(online[name].detach()))
        torch._foreach_lerp_(copies, sources, 1 - self.momentum)

    def _pairs(self, model: Blip) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{part}.{name}", parameter)
            for part, module in self._online(model).items()
            for name, parameter in module.named_parameters()
        ]

    @torch.no_grad()
    def features(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Normalised features of images [B, 3, H, W] and texts [B, T] beginning with [CLS]: [B, E] each.

        Images may be videos, see `Blip.image_features`.
        """
        vision = cast(VisionEncoder, self.vision)
        image_embeds = over_frames(vision, images)[:, :: vision.num_tokens]
        hidden = cast(nn.Module, self.text_encoder)(input_ids, attention_mask)
        return (
            F.normalize(cast(nn.Module, self.vision_proj)(image_embeds).mean(1), dim=-1),
            F.normalize(cast(nn.Module, self.text_proj)(hidden[:, 0]), dim=-1),
        )


class FeatureQueue(nn.Module):
    """The last M momentum features of both modalities with their image ids, as a ring.

    Any batch size goes into any queue size, and the position stays on the device: no host synchronisation.
    """

    images: Tensor
    texts: Tensor
    image_ids: Tensor
    position: Tensor

    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        self.size = size
        # Random unit vectors until real features replace them, as in the reference.
        self.register_buffer("images", F.normalize(torch.randn(size, embed_dim), dim=-1))
        self.register_buffer("texts", F.normalize(torch.randn(size, embed_dim), dim=-1))
        # No image has this id: stable ids are non-negative.
        self.register_buffer("image_ids", torch.full((size,), -100, dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, images: Tensor, texts: Tensor, image_ids: Tensor | None = None) -> None:
        """Replace the oldest entries by features [K, E] of all ranks, ids int64 [K]."""
        if self.size == 0:
            return
        count = images.shape[0]
        # Of more features than the queue holds only the newest are written, so that no slot is written twice.
        skipped = max(count - self.size, 0)
        slots = (self.position + torch.arange(skipped, count, device=images.device)) % self.size
        self.images[slots] = images[skipped:].to(self.images.dtype)
        self.texts[slots] = texts[skipped:].to(self.texts.dtype)
        self.image_ids[slots] = -100 if image_ids is None else image_ids[skipped:]
        self.position.copy_((self.position + count) % self.size)
