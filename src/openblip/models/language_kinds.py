"""What the language models of transformers keep, and begin with, each in its way."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "OTHER_DECODERS",
    "can_step",
    "empty_cache",
    "empty_caches",
    "encoded",
    "first_position",
    "fixed_cache",
    "grows_alike",
    "made_of_decoders",
    "reads_ids",
    "start_id",
]

OTHER_DECODERS = frozenset({"prophetnet", "xlm-prophetnet", "switch_transformers", "nllb-moe"})
"""encoder-decoders whose heads read other shapes, or whose decoders take more from the encoder than its states"""


def encoded(states: Tensor) -> Any:
    """States [R, S, L'] of an encoder, as decoders of transformers take them."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states)


def made_of_decoders(model: Any) -> bool:
    """Whether an encoder-decoder's two parts are described each for itself, as T5Gemma's are."""
    return bool(model.config.is_encoder_decoder) and model.config.get_text_config() is not model.config


def start_id(model: Any) -> int | None:
    """The token with which the decoder of an encoder-decoder starts."""
    described = model.config.get_text_config()
    begins = ["bos_token_id"] if made_of_decoders(model) else []
    for name in ("decoder_start_token_id", *begins, "pad_token_id"):
        for config in (described, model.config, getattr(model, "generation_config", None)):
            if (found := getattr(config, name, None)) is not None:
                return int(found)
    return None


def empty_cache(model: Any) -> Any:
    """An empty cache for a decoder; its configuration says which layers keep a window or a recurrent state."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config())


def empty_caches() -> Any:
    """Those of an encoder-decoder: what its decoder has read of itself, and of the encoder."""
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def can_step(model: Any) -> bool:
    """Whether a decoder keeps all that it has read in a cache whose rows can be reordered and dropped.

    MiniMax, xLSTM and others have caches of their own, RecurrentGemma keeps its states in its layers. Mamba,
    without attention, masks its states as if a step were the whole text.
    """
    from transformers.cache_utils import DynamicLayer

    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        return False
    if any(hasattr(part, "_setup_cache") for part in model.modules()):
        return False
    try:
        layers = empty_cache(model).layers
    except KeyError:  # a kind of layer that has no cache
        return False
    return not layers or any(isinstance(layer, DynamicLayer) for layer in layers)


def grows_alike(cache: Any, slots: int) -> bool:
    """Whether each layer holds keys [R, H, `slots`, d] of all tokens: none a state, or those of a window alone."""
    from transformers.cache_utils import DynamicLayer

    return all(
        isinstance(layer, DynamicLayer) and isinstance(layer.keys, Tensor) and layer.keys.shape[2:3] == (slots,)
        for layer in cache.layers
    )


def fixed_cache(like: Any, rows: int, room: int, slot: Tensor) -> Any:
    """A cache whose layers write a token's keys and values into `slot`, int64 [1], of [R, H, `room`, d], in place.

    Args:
        like: one that has read a prompt, of which `grows_alike` is true.
    """
    from transformers.cache_utils import DynamicCache

    def empty(part: Tensor) -> Tensor:
        return torch.zeros(rows, part.shape[1], room, part.shape[3], dtype=part.dtype, device=part.device)

    cache = DynamicCache()
    for model in like.layers:
        cache.layers.append(_fixed_layer()(empty(model.keys), empty(model.values), slot))
    return cache


@functools.cache
def _fixed_layer() -> Any:
    """The class of a layer of `fixed_cache`, made at its first use: transformers takes long to import."""
    from transformers.cache_utils import DynamicLayer

    class FixedLayer(DynamicLayer):
        def __init__(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
            super().__init__()
            self.slot, self.is_initialized = slot, True
            self.keys, self.values = keys, values

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> Any:
            self.keys.index_copy_(2, self.slot, key_states)
            self.values.index_copy_(2, self.slot, value_states)
            return self.keys, self.values

    return FixedLayer


def first_position(model: Any) -> int:
    """The position of the first token: behind that of padding in RoBERTa and what is made like it, else 0."""
    for part in model.modules():
        if hasattr(part, "create_position_ids_from_inputs_embeds"):
            return int(part.padding_idx) + 1
    return 0


def reads_ids(model: Any) -> bool:
    """Whether every block takes something of a token's id, which soft prompts have not: Gemma 3n, some Gemma 4."""
    return bool(getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0))
