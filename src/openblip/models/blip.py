"""BLIP: a vision tower, a text encoder and a text decoder over one image memory.

    image_embeds = model.encode_image(images)       # [B, N, Dv]
    memory = model.remember(image_embeds)           # keys and values of every layer, once
    itm_logits = model.match(ids, mask, memory)     # [R, 2], R a multiple of B
    logits = model.text_decoder(ids, memory=memory) # [R, T, V]

Tensors in, tensors out: no text, no loss, no ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.errors import UserError, nearest
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import ImageMemory
from openblip.models.pixels import over_frames
from openblip.models.recompute import recompute
from openblip.models.text import TextDecoder, TextTransformer
from openblip.models.vision import VisionEncoder

__all__ = ["SIZES", "TEMPERATURE", "Blip", "BlipConfig", "blip_config"]


@dataclass(frozen=True, kw_only=True)
class BlipConfig:
    """What a BLIP model is made of; the defaults are the paper's ViT-B model."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 256
    """Width of the joint image-text space of ITC."""
    encoder: bool = True
    """Whether texts can be embedded and matched."""
    decoder: bool = True
    """Whether texts can be written; beside an encoder the decoder shares everything but self-attention with it."""

    def __post_init__(self) -> None:
        if not (self.encoder or self.decoder):
            raise UserError("a model needs an encoder, a decoder, or both")
        if self.text.memory_width != self.vision.width:
            raise UserError(
                f"text.memory_width is {self.text.memory_width}, but the vision tower is {self.vision.width} wide"
            )


TEMPERATURE = 0.07
"""of ITC before it is learned"""
SIZES = ("nano", "micro", "base", "large")


def blip_config(size: str, *, vocab_size: int = 30524, image_size: int | None = None) -> BlipConfig:
    """The paper's sizes ("base" is ViT-B/16, "large" ViT-L/16) and two small ones for few images.

    Args:
        vocab_size: of the tokenizer, [DEC] and [ENC] included.
        image_size: pixels; None takes 224 for the paper's sizes, 64 for the small ones.
    """
    if size not in SIZES:
        raise UserError(f'unknown model size "{size}"{nearest(size, SIZES)}')
    if size == "base":
        vision = VisionConfig(image_size=image_size or 224)
        text = TextConfig(vocab_size=vocab_size)
    elif size == "large":
        # Stochastic depth of 0.1 is the reference's for ViT-L; its ViT-B has none.
        vision = VisionConfig(image_size=image_size or 224, width=1024, depth=24, num_heads=16, drop_path=0.1)
        text = TextConfig(vocab_size=vocab_size, memory_width=1024)
    else:
        width, depth, layers, embed_dim = (128, 4, 3, 64) if size == "micro" else (64, 2, 2, 32)
        pixels = image_size or 64
        # Patches of 16 would leave an image of 64 pixels with 4 x 4 tokens.
        patch = 8 if pixels <= 96 else 16
        vision = VisionConfig(
            image_size=pixels, patch_size=patch, width=width, depth=depth, num_heads=4, stem="conv"
        )
        text = TextConfig(
            vocab_size=vocab_size,
            width=width,
            depth=layers,
            num_heads=4,
            inner_width=4 * width,
            max_positions=64,
            memory_width=width,
            dropout=0.0,
        )
        return BlipConfig(vision=vision, text=text, embed_dim=embed_dim)
    return BlipConfig(vision=vision, text=text)


class Blip(nn.Module):
    """The multimodal mixture of encoder and decoder (MED) of Li et al. 2022.

    Attributes:
        vision: images to tokens.
        text_encoder: None when the configuration has no encoder.
        text_decoder: None when it has no decoder.
        temperature: of ITC, learned, a scalar.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text_encoder = TextTransformer(config.text) if config.encoder else None
        self.text_decoder: TextDecoder | None = None
        if config.decoder:
            encoder = self.text_encoder
            causal = (
                TextTransformer(config.text, causal=True) if encoder is None else encoder.decoder_sharing_weights()
            )
            self.text_decoder = TextDecoder(causal)
        if config.encoder:
            self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
            self.text_proj = nn.Linear(config.text.width, config.embed_dim)
            self.itm_head = nn.Linear(config.text.width, 2)
            self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> image_embeds [B, N, Dv], normalised as the vision tower wants them."""
        return self.encode_image(self.vision.normalize(pixels))

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> image_embeds [B, N, Dv], [CLS] first; of K frames [B, K * N, Dv]."""
        return over_frames(self.vision, images)

    def remember(self, image_embeds: Tensor, mask: Tensor | None = None) -> ImageMemory:
        """Project image features [B, N, Dv] once for all that reads them; mask bool [B, N]."""
        return self._any_text().remember(image_embeds, mask)

    def image_features(self, image_embeds: Tensor) -> Tensor:
        """[B, N, Dv] -> normalised [B, E], for ITC; of a video the mean over its frames, normalised afterwards."""
        each = self.vision_proj(image_embeds[:, :: self.vision.num_tokens])  # [B, K, E], of the frames' [CLS]
        return F.normalize(each.mean(1), dim=-1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Ids [R, T] that begin with [CLS] -> normalised [R, E], for ITC."""
        hidden = self.encoder(input_ids, attention_mask, first_only=True)
        return F.normalize(self.text_proj(hidden[:, 0]), dim=-1)

    def match(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """Ids [R, T] that begin with [ENC] -> ITM logits [R, 2]; class 1 is "matched"."""
        hidden = self.encoder(input_ids, attention_mask, memory=memory, first_only=True)
        return self.itm_head(hidden[:, 0])

    @property
    def encoder(self) -> TextTransformer:
        """The text encoder, or a clear word when the model has none."""
        if self.text_encoder is None:
            raise UserError(
                "this model only writes captions; matching needs one pre-trained or fine-tuned with ITC and ITM"
            )
        return self.text_encoder

    @property
    def decoder(self) -> TextDecoder:
        """The text decoder, or a clear word when the model has none."""
        if self.text_decoder is None:
            raise UserError("this model only matches; writing captions needs one pre-trained or fine-tuned with LM")
        return self.text_decoder

    def _any_text(self) -> TextTransformer:
        # Encoder and decoder share cross-attention, so both project the same memory.
        return self.text_encoder if self.text_encoder is not None else self.decoder.transformer

    @property
    def depths(self) -> tuple[int, int]:
        """Blocks of the vision tower and of the text transformer, for layer-wise decay."""
        return self.config.vision.depth, self.config.text.depth

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """Trade time for memory: recompute a share of the blocks of each part in the backward pass; 0 is off."""
        recompute(self.vision.vit.blocks, share)
        for text in (self.text_encoder, self.text_decoder.transformer if self.text_decoder else None):
            if text is not None:
                recompute(text.text_blocks, share)

    def part(self, *, encoder: bool, decoder: bool) -> Blip:
        """A model of some of the parts, weights copied: a captioner (decoder) or a filter (encoder).

        It has the device, the dtype and the mode (training or not) of the whole.
        """
        # The properties raise where the model lacks the part.
        if encoder:
            assert self.encoder is not None
        if decoder:
            assert self.decoder is not None
        first = next(self.parameters())
        smaller = Blip(replace(self.config, encoder=encoder, decoder=decoder)).to(first.device, first.dtype)
        own = self.state_dict()
        smaller.load_state_dict({key: own[key] for key in smaller.state_dict()})
        return smaller.train(self.training)
