"""What a checkpoint is, from its keys alone, and what to call it in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from openblip.core.errors import UserError
from openblip.models.blip import BlipConfig
from openblip.models.blip2 import Blip2Config
from openblip.models.dual import DualConfig
from openblip.models.nlvr import NlvrConfig
from openblip.models.vqa import VqaConfig

__all__ = ["AnyConfig", "describe", "format_of"]

AnyConfig = BlipConfig | VqaConfig | NlvrConfig | DualConfig
"""of a BLIP model; BLIP-2's is another"""

# Others' files that people take for BLIP's; the first pattern that matches a key wins.
_STRANGERS = (
    (r"[Qq]former\.|query_tokens$|qformer\.", "a BLIP-2 model, which has a Q-Former"),
    (r"vit\.|visual\.transformer\.|text_model\.encoder\.layers\.", "a CLIP model"),
    (r"bert\.|embeddings\.word_embeddings", "a BERT"),
    (r"blocks\.\d+\.attn\.qkv|encoder\.layers\.encoder_layer_", "a vision transformer without a text side"),
    (r"model\.layers\.|model\.decoder\.layers\.|transformer\.h\.", "a language model"),
    (r"layer\d\.\d+\.conv\d|features\.\d", "a convolutional network"),
    (r"state$|param_groups$", "an optimiser's state"),
)


def format_of(keys: Iterable[str], source: str) -> Literal["blip", "transformers"]:
    """Whose names the keys are: the original repository's (LAVIS has the same) or those of transformers.

    Raises:
        UserError: they are of another model; says which it looks like.
    """
    names = list(keys)
    stranger = next((what for pattern, what in _STRANGERS if any(re.match(pattern, key) for key in names)), None)
    if any(key.startswith("visual_encoder.") for key in names) and not any("former." in key for key in names):
        return "blip"
    text = ("text_decoder.", "text_encoder.", "text_model.embeddings.word_embeddings")
    if any(key.startswith("vision_model.") for key in names) and any(key.startswith(text) for key in names):
        return "transformers"
    if stranger is None and names:
        stranger = f"something with keys like {', '.join(names[:3])}"
    raise UserError(f"{source} is no BLIP checkpoint; it looks like {stranger or 'an empty file'}")


def describe(config: AnyConfig | Blip2Config) -> str:
    """What a model is, in a few words: "a BLIP captioning model (vision 768 wide, 12 deep, 384 x 384 px)"."""
    if isinstance(config, Blip2Config):
        language = "" if config.language is None else f" and {config.language.source}"
        stage = "BLIP-2 stage 1 model" if config.language is None else "BLIP-2 model"
        return f"a {stage} ({config.qformer.num_queries} queries between {config.vision.source}{language})"
    if isinstance(config, VqaConfig):
        kind = "BLIP VQA model"
    elif isinstance(config, NlvrConfig):
        kind = "BLIP NLVR2 model"
    elif isinstance(config, DualConfig):
        kind = "two-tower BLIP model (transformers' BlipModel)"
    elif config.encoder and config.decoder:
        kind = "BLIP pre-training model"
    else:
        kind = "BLIP matching model" if config.encoder else "BLIP captioning model"
    vision = config.vision
    height, width = vision.pixels
    return f"a {kind} (vision {vision.width} wide, {vision.depth} deep, {height} x {width} px)"
