"""BLIP-2: a frozen vision tower, the Q-Former, and (in stage 2) a frozen language model.

    image_embeds = model.encode_image(images)              # frozen, then a trained LayerNorm
    memory = model.remember(image_embeds)                  # once for all that reads the image
    model.image_features(memory), model.text_features(ids, mask), model.match(ids, mask, memory)     # stage 1
    soft = model.soft_prompt(memory)                       # [B, Q, L], before the text of the language model

Tensors in, tensors out: no text, no loss, no ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig
from openblip.models.language import FrozenLanguage
from openblip.models.layers import ImageMemory, KVCache
from openblip.models.pixels import over_frames
from openblip.models.qformer import QFormer
from openblip.models.recompute import recompute
from openblip.models.tower import FrozenTower
from openblip.models.tower_parts import block_list

__all__ = ["TEMPERATURE", "Blip2", "Blip2Config", "best_query"]

TEMPERATURE = 0.07
"""of ITC before it is learned"""
_MOST_BYTES = 2**26
"""bytes of similarities of all queries that are held at once; those of one image with all texts may be more"""


@dataclass(frozen=True, kw_only=True)
class Blip2Config:
    """What a BLIP-2 model is made of; the defaults are the paper's stage 1 over ViT-g/14."""

    vision: TowerConfig = field(default_factory=TowerConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    matches: bool = True
    """Whether the model has stage 1's heads: embeddings for ITC, and ITM."""
    embed_dim: int = 256
    """Width of the joint image-text space of ITC."""
    language: LanguageConfig | None = None
    """The frozen language model of stage 2; None builds a model of stage 1."""
    vision_norm_eps: float = 1e-5
    """Epsilon of the trained LayerNorm over the tower; transformers' folders have 1e-6."""

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise UserError(f"embed_dim must be at least 1, not {self.embed_dim}")
        if self.matches and self.qformer.vocab_size is None:
            raise UserError("matching needs a Q-Former that reads text: give qformer.vocab_size")


class Blip2(nn.Module):
    """The model of Li et al. 2023 with the parts that its configuration names.

    Args:
        vision: the tower, made by `make_tower`.
        language: the language model; with the configuration's `language`.

    Attributes:
        temperature: of ITC, learned, a scalar.
    """

    def __init__(self, config: Blip2Config, vision: FrozenTower, language: FrozenLanguage | None = None) -> None:
        super().__init__()
        assert (language is None) == (config.language is None), "the language model goes with its configuration"
        if vision.width != config.qformer.memory_width:
            raise UserError(
                f"the vision tower {config.vision.source} is {vision.width} wide and the Q-Former reads "
                f"{config.qformer.memory_width}; set qformer.memory_width to the tower's width"
            )
        # The parts have settled what was left to them, such as the dtype "auto".
        config = replace(config, vision=vision.config)
        if config.language is not None and language is not None:
            config = replace(config, language=replace(config.language, dtype=language.config.dtype))
        self.config = config
        self.vision = vision
        self.vision_norm = nn.LayerNorm(vision.width, eps=config.vision_norm_eps)
        self.qformer = QFormer(config.qformer)
        width = config.qformer.width
        if config.matches:
            self.vision_proj = nn.Linear(width, config.embed_dim)
            self.text_proj = nn.Linear(width, config.embed_dim)
            self.itm_head = nn.Linear(width, 2)
            self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))
        self.language = language
        if language is not None:
            self.language_proj = nn.Linear(width, language.width)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W], or the tower's features [B, N, Dv] of them -> image_embeds [B, N, Dv]."""
        if pixels.dtype == torch.uint8:
            return self.encode_image(self.vision.normalize(pixels))
        return self.normalize_features(pixels)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> image_embeds [B, N, Dv]; of K frames [B, K * N, Dv]."""
        return self.normalize_features(over_frames(self.vision, images))

    def normalize_features(self, features: Tensor) -> Tensor:
        """The tower's features [B, N, Dv], as a cache may hold them, -> image_embeds, by the trained LayerNorm."""
        # The frozen tower and its cache may be in half precision; this norm is trained, in float32.
        return self.vision_norm(features.to(self.vision_norm.weight.dtype))

    def remember(self, image_embeds: Tensor, mask: Tensor | None = None) -> ImageMemory:
        """Project image_embeds [B, N, Dv] once for all that reads them; mask bool [B, N]."""
        return self.qformer.remember(image_embeds, mask)

    def read_image(self, memory: ImageMemory, cache: KVCache | None = None) -> Tensor:
        """Query outputs [B, Q, D]; an empty `cache` keeps what ITG continues from."""
        return self.qformer.read_image(memory, cache)

    def image_features(self, queries: Tensor) -> Tensor:
        """Query outputs [B, Q, D] -> normalised [B, Q, E], for ITC."""
        self._need_heads()
        return F.normalize(self.vision_proj(queries), dim=-1)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Ids [R, T] that begin with [CLS] -> normalised [R, E], for ITC."""
        self._need_heads()
        return F.normalize(self.text_proj(self.qformer.read_text(input_ids, attention_mask)[:, 0]), dim=-1)

    def match(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """Ids [R, T] that begin with [CLS] -> ITM logits [R, 2], the queries' mean; class 1 is "matched"."""
        self._need_heads()
        return self.itm_head(self.qformer.read_pair(input_ids, attention_mask, memory)).mean(1)

    def write(self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache) -> Tensor:
        """ITG's logits [R, T, V] for ids that begin with [DEC], from the cache that `read_image` filled."""
        if self.qformer.head is None:
            raise UserError("the Q-Former of this model has no language head; it needs one of stage 1")
        return self.qformer.head(self.qformer.write(input_ids, attention_mask, cache))

    def soft_prompt(
        self,
        memory: ImageMemory,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        each_frame: bool = False,
    ) -> Tensor:
        """What the language model reads of the images, [B, Q, L], or with texts [R, Q, L].

        Args:
            input_ids: texts [R, T] for the Q-Former to read with the images, as in fine-tuning for VQA.
            each_frame: of videos of K frames each frame is read with its text by itself, [R, K * Q, L], as
                InstructBLIP does.
        """
        if self.language is None:
            raise UserError("this model has no language model; answers and captions by one need stage 2")
        if input_ids is None:
            return self.language_proj(self.qformer.read_image(memory))
        videos, (rows, columns) = memory.batch_size, self.vision.grid
        frames = memory.keys[0].shape[2] // (self.vision.first + rows * columns) if each_frame else 1
        if frames > 1:
            memory = memory.frames(frames)
            # A video's texts come once for each of its frames, which stand together.
            input_ids, attention_mask = (
                None if part is None else _with_each(part, videos, frames) for part in (input_ids, attention_mask)
            )
            assert input_ids is not None
        # Under ITM's mask the queries attend to the text, so the soft prompt is specific to it.
        soft = self.language_proj(self.qformer.read_pair(input_ids, attention_mask, memory))
        if frames > 1:
            soft = soft.unflatten(0, (videos, frames, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return soft

    @property
    def llm(self) -> FrozenLanguage:
        """The language model, or a clear word when there is none."""
        if self.language is None:
            raise UserError("this model has no language model; it needs one of stage 2")
        return self.language

    def _need_heads(self) -> None:
        if not self.config.matches:
            raise UserError("this model only writes; matching and embeddings need a model with stage 1's heads")

    @property
    def depths(self) -> tuple[int, int | None]:
        """Blocks of the vision tower, for layer-wise decay; all else has one rate, as in the paper and in LAVIS."""
        return self.vision.depth, None

    def gradient_checkpointing_enable(self, share: float = 1.0) -> None:
        """Trade time for memory: recompute a share of the blocks of each part that has gradients; 0 is off."""
        found = block_list(self.vision.encoder) if self.vision.config.trained else None
        recompute(() if found is None else found[1], share)
        recompute(self.qformer.qformer_blocks, share)
        if self.language is not None:
            self.language.gradient_checkpointing_enable(share)

    def frozen_parameter_names(self) -> set[str]:
        """Names of the parameters that are not trained."""
        return {name for name, parameter in self.named_parameters() if not parameter.requires_grad}

    def num_trained(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def _with_each(part: Tensor, videos: int, frames: int) -> Tensor:
    """[R, T] of so many videos -> [R * `frames`, T]: all rows of a video, once for each frame."""
    return part.unflatten(0, (videos, 1, -1)).expand(-1, frames, -1, -1).flatten(0, 2)


def best_query(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Similarity of images [B, Q, E] and texts [R, E], [B, R]: that of the query which fits the text best."""
    # Those of all queries, [B, R, Q], would be 16 GB for the 5,000 images and 25,000 texts of COCO's test split.
    of_one = image_features.shape[1] * len(text_features) * image_features.element_size()
    at_once = max(1, _MOST_BYTES // max(1, of_one))
    return torch.cat(
        [torch.einsum("bqe,re->brq", some, text_features).amax(-1) for some in image_features.split(at_once)]
    )
