"""Small language models of transformers with random weights, to be trained from scratch and then frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openblip.core.errors import UserError
from openblip.models.opening import without_bars

__all__ = ["LanguageSizes", "language_from_scratch", "save_language"]


@dataclass(frozen=True, kw_only=True)
class LanguageSizes:
    """Sizes of a small language model."""

    kind: Literal["opt", "llama", "t5"] = "llama"
    """architecture: OPT and Llama are decoders, T5 an encoder-decoder"""
    width: int = 128
    depth: int = 4
    """blocks, of an encoder-decoder on each side"""
    num_heads: int = 4
    max_positions: int = 256

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise UserError(f"a language model {self.width} wide cannot have {self.num_heads} heads")


def language_from_scratch(sizes: LanguageSizes, *, vocab_size: int, pad_id: int, bos_id: int, eos_id: int) -> Any:
    """A `...ForCausalLM` or `...ForConditionalGeneration` of transformers, without dropout."""
    import transformers

    width, depth, heads = sizes.width, sizes.depth, sizes.num_heads
    ids: dict[str, Any] = {"vocab_size": vocab_size, "pad_token_id": pad_id, "eos_token_id": eos_id}
    if sizes.kind == "t5":
        ids |= {"decoder_start_token_id": pad_id}
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=width, d_kv=width // heads, d_ff=4 * width, num_layers=depth, num_heads=heads,
                dropout_rate=0.0, **ids,
            )
        )  # fmt: skip
    ids |= {"bos_token_id": bos_id, "max_position_embeddings": sizes.max_positions, "num_hidden_layers": depth}
    if sizes.kind == "opt":
        return transformers.OPTForCausalLM(
            transformers.OPTConfig(
                hidden_size=width, word_embed_proj_dim=width, ffn_dim=4 * width, num_attention_heads=heads,
                dropout=0.0, **ids,
            )
        )  # fmt: skip
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=width, intermediate_size=3 * width, num_attention_heads=heads,
            tie_word_embeddings=True, **ids,
        )
    )  # fmt: skip


def save_language(model: Any, folder: Path) -> None:
    """Write a language model as transformers does."""
    with without_bars():
        model.eval().save_pretrained(folder)
