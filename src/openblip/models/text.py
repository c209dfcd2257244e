"""The text transformer of BLIP (MED) as a composition: an encoder, and a decoder over the same modules.

Without memory the encoder reads text alone; with memory it reads text grounded in an image; the decoder
writes text about an image. Encoder and decoder share embeddings, cross-attention and feed-forward as the
same module objects and differ in self-attention only (Li et al. 2022, section 3.1).

Shapes: R text rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.configs import TextConfig
from openblip.models.dropout import apply_dropout
from openblip.models.layers import CrossAttention, FeedForward, ImageMemory, KVCache, SelfAttention, scale_narrow
from openblip.models.products import Linear, linear

__all__ = ["LanguageHead", "TextDecoder", "TextEmbeddings", "TextTransformer"]


class TextEmbeddings(nn.Module):
    """Word and position embeddings, summed and normalised; token types are always zero and left out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.word = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_id)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor | None = None, *, tree: bool = False) -> Tensor:
        """int64 [R, T] -> [R, T, D]; `positions` int64 [R, T] defaults to 0..T-1.

        Args:
            tree: several tokens may stand at one position, and there may be more of them than positions.
        """
        length = input_ids.shape[1]
        limit = self.position.num_embeddings
        if length > limit and not tree:
            raise UserError(f"a text of {length} tokens is longer than the {limit} the model takes")
        where = self.position.weight[:length] if positions is None else self.position(positions)
        return apply_dropout(self.norm(self.word(input_ids) + where), self.dropout, self.training)


class TextBlock(nn.Module):
    """Self-attention, cross-attention to the image memory (skipped without one), feed-forward."""

    def __init__(
        self, self_attention: SelfAttention, cross_attention: CrossAttention | None, feed_forward: FeedForward
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        causal: bool,
        memory: tuple[Tensor, Tensor, Tensor | None] | None,
        cache: KVCache | None,
        layer: int,
        first_only: bool,
    ) -> Tensor:
        """[R, T, D] -> [R, T, D]; with `first_only` the first token's row alone, [R, 1, D]."""
        hidden = self.self_attention(
            hidden, mask=mask, causal=causal, cache=cache, layer=layer, first_only=first_only
        )
        if memory is not None:
            assert self.cross_attention is not None, "a text transformer built without memory_width got a memory"
            hidden = self.cross_attention(hidden, *memory)
        return self.feed_forward(hidden)


class TextTransformer(nn.Module):
    """BERT with cross-attention in every layer.

    Args:
        causal: whether a token sees only those before it (the decoder) or all (the encoder).
    """

    def __init__(self, config: TextConfig, *, causal: bool = False) -> None:
        super().__init__()
        self.config = config
        self.causal = causal
        self.embeddings = TextEmbeddings(config)
        options = {"dropout": config.dropout, "eps": config.layer_norm_eps}
        self.blocks = nn.ModuleList(
            TextBlock(
                SelfAttention(config.width, config.num_heads, **options),
                None
                if config.memory_width is None
                else CrossAttention(config.width, config.num_heads, config.memory_width, **options),
                FeedForward(config.width, config.inner_width, **options),
            )
            for _ in range(config.depth)
        )
        self.embeddings.apply(init_bert)
        _init_blocks(self.blocks, config.width)

    def decoder_sharing_weights(self) -> TextTransformer:
        """A causal transformer over the same embeddings, cross-attention and feed-forward modules.

        Only its self-attention is its own, initialised anew.
        """
        # Without __init__, which would build and initialise modules of its own in place of the shared ones.
        decoder = TextTransformer.__new__(TextTransformer)
        nn.Module.__init__(decoder)
        decoder.config, decoder.causal = self.config, True
        decoder.embeddings = self.embeddings
        config = self.config
        decoder.blocks = nn.ModuleList(
            TextBlock(
                SelfAttention(config.width, config.num_heads, dropout=config.dropout, eps=config.layer_norm_eps),
                block.cross_attention,
                block.feed_forward,
            )
            for block in self.text_blocks
        )
        for block in decoder.text_blocks:
            _init_blocks(block.self_attention, config.width)
        return decoder

    @property
    def text_blocks(self) -> Sequence[TextBlock]:
        """The blocks, typed."""
        return cast(Sequence[TextBlock], self.blocks)

    def remember(self, image_embeds: Tensor, mask: Tensor | None = None) -> ImageMemory:
        """Project image features [B, N, memory_width] once for every layer; mask bool [B, N]."""
        projected = []
        for block in self.text_blocks:
            assert block.cross_attention is not None, "this text transformer was built without memory_width"
            projected.append(block.cross_attention.project(image_embeds))
        keys, values = zip(*projected, strict=True)
        return ImageMemory(keys, values, mask)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        memory: ImageMemory | None = None,
        cache: KVCache | None = None,
        first_only: bool = False,
        tree: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Encode texts.

        Args:
            input_ids: int64 [R, T].
            attention_mask: bool [R, T], True for real tokens; None when all are. Padding stands on the right.
            memory: of B images, R a multiple of B; None reads the text alone.
            cache: of the tokens before these; the causal transformer adds these to it.
            first_only: the first token's state is all that is wanted; the last block computes no other.
            tree: for the causal transformer, texts that share beginnings as one row: the position int64 [R, T]
                of each token, and bool [R, T, T], to which it attends.

        Returns:
            hidden states [R, T, D], with `first_only` [R, 1, D]; those of padding are without meaning.
        """
        assert attention_mask is None or attention_mask.dtype == torch.bool, "attention_mask must be bool"
        assert memory is None or len(memory.keys) == len(self.blocks), (
            "the memory is of a text transformer of other depth"
        )
        positions, mask, causal = None, None, self.causal
        if cache is not None:
            assert self.causal, "only the causal transformer takes a cache"
            positions, mask, causal = cache.place(input_ids, attention_mask)
        elif tree is not None:
            assert self.causal, "a tree is of texts from left to right"
            positions, mask, causal = tree[0], tree[1][:, None], False
        elif not self.causal and attention_mask is not None:
            mask = attention_mask[:, None, None, :]
        # A causal pass needs no padding mask: padding stands on the right, where no real token looks.
        hidden = self.embeddings(input_ids, positions, tree=tree is not None)
        for layer, block in enumerate(self.text_blocks):
            read = None if memory is None else (memory.keys[layer], memory.values[layer], memory.mask)
            # Only the last block may omit the other tokens: those before it give the keys and values that the first
            # reads.
            first = first_only and layer == len(self.blocks) - 1
            hidden = block(hidden, mask, causal, read, cache, layer, first)
        return hidden


class LanguageHead(nn.Module):
    """Hidden states to logits over the vocabulary; the last matrix is the word embedding itself."""

    def __init__(self, config: TextConfig, word: nn.Embedding) -> None:
        super().__init__()
        self.inner = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(init_bert)
        # Assigned after `apply`, which would initialise the shared embedding again.
        self.word = word

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return linear(self.norm(F.gelu(self.inner(hidden))), self.word.weight, self.bias)


class TextDecoder(nn.Module):
    """A causal text transformer with a language head."""

    def __init__(self, transformer: TextTransformer) -> None:
        super().__init__()
        assert transformer.causal, "a decoder needs a causal transformer"
        self.transformer = transformer
        self.head = LanguageHead(transformer.config, transformer.embeddings.word)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        memory: ImageMemory | None = None,
        cache: KVCache | None = None,
        tree: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits of the next token at each position, [R, T, V]; arguments as `TextTransformer.forward`."""
        return self.head(self.transformer(input_ids, attention_mask, memory=memory, cache=cache, tree=tree))


def _init_blocks(blocks: nn.Module, width: int) -> None:
    """BERT's initialisation, fitted to the width."""
    blocks.apply(init_bert)
    scale_narrow(blocks, width)


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation: normal with standard deviation 0.02 for matrices, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
