"""BLIP for reasoning over two images (NLVR2): is a sentence true of the pair?

    embeds = model.encode_pair(first, second)            # [B, 2, N, Dv]
    logits = model.classify(ids, mask, model.remember(embeds))

The text encoder's cross-attention is one for each image, merged by average in the first layers and by a linear
layer of both in the later ones (Li et al. 2022, section 5.4).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.blip import Blip
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import ImageMemory, PairCrossAttention
from openblip.models.recompute import recompute
from openblip.models.text import TextTransformer, init_bert
from openblip.models.vision import VisionEncoder

__all__ = ["BlipNlvr", "NlvrConfig"]


@dataclass(frozen=True, kw_only=True)
class NlvrConfig:
    """What a BLIP NLVR2 model is made of; the defaults are the paper's."""

    vision: VisionConfig = field(default_factory=lambda: VisionConfig(image_size=384))
    text: TextConfig = field(default_factory=TextConfig)
    merge_from: int = 6
    """first layer (from 0) that merges by a linear layer; those before average"""

    def __post_init__(self) -> None:
        if self.text.memory_width != self.vision.width:
            raise UserError(
                f"text.memory_width is {self.text.memory_width}, but the vision tower is {self.vision.width} wide"
            )


class BlipNlvr(nn.Module):
    """Reads two images with one text and says whether the text is true of them."""

    def __init__(self, config: NlvrConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text_encoder = TextTransformer(config.text)
        text, width = config.text, config.text.width
        for layer, block in enumerate(self.text_encoder.text_blocks):
            block.cross_attention = PairCrossAttention(
                width,
                text.num_heads,
                config.vision.width,
                dropout=text.dropout,
                eps=text.layer_norm_eps,
                merge=layer >= config.merge_from,
            ).apply(init_bert)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> image_embeds [B, N, Dv], normalised as the vision tower wants them."""
        return self.encode_image(self.vision.normalize(pixels))

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> image_embeds [B, N, Dv], [CLS] first."""
        return self.vision(images)

    def encode_pair(self, first: Tensor, second: Tensor) -> Tensor:
        """Normalised images, [B, 3, H, W] each -> image_embeds [B, 2, N, Dv]."""
        return torch.stack(self.vision(torch.cat((first, second))).chunk(2), dim=1)

    def remember(self, image_embeds: Tensor, mask: Tensor | None = None) -> ImageMemory:
        """Project the features of B pairs [B, 2, N, Dv] once for all texts; mask bool [B, 2, N]."""
        return self.text_encoder.remember(image_embeds, mask)

    def classify(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """Ids [R, T] that begin with [ENC], R a multiple of the pairs -> logits [R, 2]; class 1 is "true"."""
        return self.head(self.text_encoder(input_ids, attention_mask, memory=memory, first_only=True)[:, 0])

    @torch.no_grad()
    def start_from(self, model: Blip) -> None:
        """Take the weights of a pre-trained model; both cross-attentions of a layer begin as its one."""
        self.vision.load_state_dict(model.vision.state_dict())
        own = self.text_encoder.state_dict()
        for key, value in model.encoder.state_dict().items():
            own[key] = value
            second = key.replace(".cross_attention.", ".cross_attention.second.")
            if second in own:
                own[second] = value
        self.text_encoder.load_state_dict(own)

    @property
    def depths(self) -> tuple[int, int]:
        """Blocks of the vision tower and of the text transformer, for layer-wise decay."""
        return self.config.vision.depth, self.config.text.depth

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """Trade time for memory: recompute a share of the blocks of each part in the backward pass; 0 is off."""
        recompute(self.vision.vit.blocks, share)
        recompute(self.text_encoder.text_blocks, share)
