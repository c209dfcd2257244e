"""BLIP for questions about images: a question encoder over the image, an answer decoder over the question's states.

    memory = model.remember(model.encode_image(images))          # once for an image
    states = model.read_question(ids, mask, memory)              # [R, T, D], R a multiple of B
    questions = model.remember_question(states, mask)            # once for a question
    logits = model.text_decoder(answer_ids, memory=questions)    # [Q, T, V], Q a multiple of R

The parts are `Blip`'s, untied: the decoder's cross-attention reads question states, not the image, so that
whatever decodes or ranks over an image memory does the same over a question's (Li et al. 2022, section 5.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.blip import Blip
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import ImageMemory
from openblip.models.pixels import over_frames
from openblip.models.recompute import recompute
from openblip.models.text import TextDecoder, TextTransformer
from openblip.models.vision import VisionEncoder

__all__ = ["BlipVqa", "VqaConfig"]


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """What a BLIP VQA model is made of; the defaults are the paper's."""

    vision: VisionConfig = field(default_factory=lambda: VisionConfig(image_size=480))
    text: TextConfig = field(default_factory=TextConfig)
    """of the question encoder; the decoder differs in what it reads alone"""

    def __post_init__(self) -> None:
        if self.text.memory_width != self.vision.width:
            raise UserError(
                f"text.memory_width is {self.text.memory_width}, but the vision tower is {self.vision.width} wide"
            )

    @property
    def decoder(self) -> TextConfig:
        """Of the answer decoder, which reads question states."""
        return replace(self.text, memory_width=self.text.width)


class BlipVqa(nn.Module):
    """Answers questions: what is asked is read with the image, the answer is written from that reading."""

    def __init__(self, config: VqaConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text_encoder = TextTransformer(config.text)
        self.text_decoder = TextDecoder(TextTransformer(config.decoder, causal=True))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> image_embeds [B, N, Dv], normalised as the vision tower wants them."""
        return self.encode_image(self.vision.normalize(pixels))

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> image_embeds [B, N, Dv], [CLS] first; of K frames [B, K * N, Dv]."""
        return over_frames(self.vision, images)

    def remember(self, image_embeds: Tensor, mask: Tensor | None = None) -> ImageMemory:
        """Project image features [B, N, Dv] once for all questions about them."""
        return self.text_encoder.remember(image_embeds, mask)

    def read_question(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """Ids [R, T] that begin with [ENC], R a multiple of the images -> question states [R, T, D]."""
        return self.text_encoder(input_ids, attention_mask, memory=memory)

    def remember_question(self, states: Tensor, attention_mask: Tensor | None) -> ImageMemory:
        """Project question states [R, T, D] once for all answers to them.

        Args:
            attention_mask: bool [R, T]; None lets answers read the states of padding too, as generation in the
                original repository and in transformers does: an answer then depends on the rest of its batch.
        """
        return self.text_decoder.transformer.remember(states, attention_mask)

    @torch.no_grad()
    def start_from(self, model: Blip) -> None:
        """Take the weights of a pre-trained model: encoder to question encoder, decoder to answer decoder.

        Cross-attention of the decoder is taken where the text is as wide as the vision tower, else it stays new.
        """
        self.vision.load_state_dict(model.vision.state_dict())
        self.text_encoder.load_state_dict(model.encoder.state_dict())
        own = self.text_decoder.state_dict()
        fitting = {k: v for k, v in model.decoder.state_dict().items() if own[k].shape == v.shape}
        self.text_decoder.load_state_dict({**own, **fitting})

    @property
    def depths(self) -> tuple[int, int]:
        """Blocks of the vision tower and of the text transformer, for layer-wise decay."""
        return self.config.vision.depth, self.config.text.depth

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """Trade time for memory: recompute a share of the blocks of each part in the backward pass; 0 is off."""
        for blocks in (self.vision.vit, self.text_encoder, self.text_decoder.transformer):
            recompute(blocks.blocks, share)
