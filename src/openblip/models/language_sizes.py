"""Language models in their published sizes, without weights: what is predicted of them needs no download.

with torch.device("meta"):
    model = language_of_size("facebook/opt-2.7b")
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openblip.core.errors import UserError

__all__ = ["LANGUAGE_SIZES", "language_of_size"]


def _opt(width: int, depth: int, heads: int) -> Any:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": width, "ffn_dim": 4 * width, "num_hidden_layers": depth}
    sizes |= {"num_attention_heads": heads, "word_embed_proj_dim": width, "attn_implementation": "sdpa"}
    return transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=50272, **sizes))


def _flan_t5(width: int, inner: int, heads: int) -> Any:
    import transformers

    sizes: dict[str, Any] = {"d_model": width, "d_kv": 64, "d_ff": inner, "num_layers": 24, "num_heads": heads}
    sizes |= {"vocab_size": 32128, "dropout_rate": 0.0, "attn_implementation": "sdpa"}
    sizes |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    model: Any = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    # Tied until weights are read that differ, as FlanT5's do.
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def _qwen3() -> Any:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    sizes |= {"tie_word_embeddings": True, "attn_implementation": "sdpa"}
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))


def _gemma3() -> Any:
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144}
    sizes |= {"sliding_window": 512, "tie_word_embeddings": True, "attn_implementation": "sdpa"}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))


LANGUAGE_SIZES: dict[str, Callable[[], Any]] = {
    "facebook/opt-2.7b": partial(_opt, 2560, 32, 32),
    "facebook/opt-6.7b": partial(_opt, 4096, 32, 32),
    "google/flan-t5-xl": partial(_flan_t5, 2048, 5120, 32),
    "google/flan-t5-xxl": partial(_flan_t5, 4096, 10240, 64),
    "Qwen/Qwen3-1.7B-Base": _qwen3,
    "google/gemma-3-1b-pt": _gemma3,
}
"""for hub names what makes the model, on the default device"""


def language_of_size(source: str) -> Any:
    """The language model `source` with weights of no meaning, on the default device; only a folder's config.json is
    read.

    Raises:
        UserError: its sizes are not known.
    """
    if source in LANGUAGE_SIZES:
        return LANGUAGE_SIZES[source]()
    if not (Path(source) / "config.json").is_file():
        known = ", ".join(LANGUAGE_SIZES)
        raise UserError(
            f"the sizes of {source} are not known; name a folder with its config.json, or one of {known}"
        )
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    described: Any = AutoConfig.from_pretrained(source)
    if described.model_type in ("blip-2", "instructblip"):
        described = described.text_config
    auto: Any = AutoModelForSeq2SeqLM if described.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(described)
