"""The two towers of transformers' `BlipModel`: images and texts in one space, with a pooled text.

No checkpoint of the papers is of this kind, but people have trained and saved it: it differs from `Blip` in a
pooler over the text's first token, projections without bias, a final LayerNorm that image features pass twice,
and a similarity scale in place of a temperature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import ImageMemory
from openblip.models.pixels import over_frames
from openblip.models.text import TextTransformer, init_bert
from openblip.models.vision import VisionEncoder

__all__ = ["BlipDual", "DualConfig"]


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """What a two-tower model is made of."""

    vision: VisionConfig = field(default_factory=lambda: VisionConfig(image_size=384))
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 512
    """Width of the joint image-text space."""

    def __post_init__(self) -> None:
        if self.text.memory_width != self.vision.width:
            raise UserError(
                f"text.memory_width is {self.text.memory_width}, but the vision tower is {self.vision.width} wide"
            )


class BlipDual(nn.Module):
    """Embeds images and texts.

    Attributes:
        logit_scale: natural logarithm of what similarities are multiplied with, learned, a scalar.
    """

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text_encoder = TextTransformer(config.text)
        self.pooler = nn.Linear(config.text.width, config.text.width).apply(init_bert)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim, bias=False)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim, bias=False)
        # The inverse of the usual first temperature of 0.07, as a logarithm.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> image_embeds [B, N, Dv], normalised as the vision tower wants them."""
        return self.encode_image(self.vision.normalize(pixels))

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> image_embeds [B, N, Dv], [CLS] first; of K frames [B, K * N, Dv]."""
        return over_frames(self.vision, images)

    def remember(self, image_embeds: Tensor, mask: Tensor | None = None) -> ImageMemory:
        """Project image features [B, N, Dv] once for all texts that read them."""
        return self.text_encoder.remember(image_embeds, mask)

    def image_features(self, image_embeds: Tensor) -> Tensor:
        """[B, N, Dv] -> normalised [B, E]; of a video the mean over its frames, normalised afterwards."""
        # The tower has applied this norm already; transformers' `BlipModel` applies it to the pooled token again.
        first = image_embeds[:, :: self.vision.num_tokens]  # of each frame
        return F.normalize(self.vision_proj(self.vision.vit.norm(first)).mean(1), dim=-1)

    def text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory | None = None
    ) -> Tensor:
        """Ids [R, T] that begin with [CLS] -> normalised [R, E]; with a memory, of the text read with its image."""
        hidden = self.text_encoder(input_ids, attention_mask, memory=memory, first_only=True)
        return F.normalize(self.text_proj(torch.tanh(self.pooler(hidden[:, 0]))), dim=-1)

    def similarity(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled similarities of images [B, E] and texts [R, E], [B, R]."""
        return image_features @ text_features.T * self.logit_scale.exp()
