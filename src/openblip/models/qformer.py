"""The Q-Former of BLIP-2: learned queries and text in one transformer that reads a frozen encoder's features.

Queries and text share self-attention and have feed-forwards of their own; every second layer lets the queries,
and them alone, read the image memory (Li et al. 2023, section 3.1). What may see what is one function,
`qformer_mask`; the objectives are ways of running the same weights:

    memory = qformer.remember(image_embeds)                  # once for an image
    queries = qformer.read_image(memory, cache)              # ITC, the soft prompts, and what ITG continues from
    hidden = qformer.read_text(ids, mask)                    # ITC
    queries = qformer.read_pair(ids, mask, memory)           # ITM
    logits = qformer.write(ids, mask, cache)                 # ITG, from the queries' cached keys and values

Shapes: B images, R text rows (a multiple of B where rows read images), Q queries, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.configs import QFormerConfig
from openblip.models.dropout import apply_dropout
from openblip.models.layers import CrossAttention, FeedForward, ImageMemory, KVCache, SelfAttention, scale_narrow
from openblip.models.text import LanguageHead, init_bert

__all__ = ["QFormer", "qformer_mask"]

Read = tuple[Tensor, Tensor, Tensor | None]
Past = tuple[Tensor, Tensor]


def qformer_mask(kind: Literal["itc", "itm", "itg"], num_queries: int, text_mask: Tensor) -> Tensor:
    """Who may attend to whom among Q queries and T tokens, bool [R, 1, Q + T, Q + T], True = may.

    With two queries q and three tokens t (rows attend to columns):

              ITC: each its own kind    ITM: all see all     ITG: text sees queries and what is before it
               q q t t t                 q q t t t            q q t t t
            q  1 1 . . .              q  1 1 1 1 1         q  1 1 . . .
            q  1 1 . . .              q  1 1 1 1 1         q  1 1 . . .
            t  . . 1 1 1              t  1 1 1 1 1         t  1 1 1 . .
            t  . . 1 1 1              t  1 1 1 1 1         t  1 1 1 1 .
            t  . . 1 1 1              t  1 1 1 1 1         t  1 1 1 1 1

    Args:
        text_mask: bool [R, T], True for real tokens; padding is seen by nobody but itself.
    """
    rows, length = text_mask.shape
    device = text_mask.device
    whole = num_queries + length
    is_text = torch.arange(whole, device=device) >= num_queries
    seeing, seen = is_text[:, None], is_text[None, :]
    if kind == "itc":
        may = seeing == seen
    elif kind == "itm":
        may = torch.ones(whole, whole, dtype=torch.bool, device=device)
    else:
        # All rows attend to the queries; text rows also attend to the text up to their own position.
        may = ~seen | (seeing & torch.ones(whole, whole, dtype=torch.bool, device=device).tril())
    real = torch.cat((text_mask.new_ones(rows, num_queries), text_mask), dim=1)
    own = torch.eye(whole, dtype=torch.bool, device=device)  # no row is left without anything to see
    return ((may & real[:, None, :]) | own)[:, None]


class QFormerBlock(nn.Module):
    """Self-attention of queries and text, the queries' look at the image, a feed-forward for each kind."""

    def __init__(self, config: QFormerConfig, *, reads_image: bool) -> None:
        super().__init__()
        options = {"dropout": config.dropout, "eps": config.layer_norm_eps}
        self.self_attention = SelfAttention(config.width, config.num_heads, **options)
        self.cross_attention = (
            CrossAttention(config.width, config.num_heads, config.memory_width, **options) if reads_image else None
        )
        self.query_feed_forward = FeedForward(config.width, config.inner_width, **options)
        self.text_feed_forward = (
            None if config.vocab_size is None else FeedForward(config.width, config.inner_width, **options)
        )

    def forward(
        self, hidden: Tensor, num_queries: int, mask: Tensor | None, read: Read | None, past: Past | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and text [R, q + t, D], of which `num_queries` (all, or none) are queries.

        Returns:
            what they become, and self-attention's keys and values [R, H, S, d], those of `past` first. Nothing is
            written into a cache here, so that the block may be computed twice.
        """
        cache = KVCache([past[0]], [past[1]]) if past is not None else KVCache()
        hidden = self.self_attention(hidden, mask=mask, cache=cache)
        queries, text = hidden[:, :num_queries], hidden[:, num_queries:]
        parts = []
        if queries.shape[1]:
            if self.cross_attention is not None:
                assert read is not None, "queries need a memory to read"
                queries = self.cross_attention(queries, *read)
            parts.append(self.query_feed_forward(queries))
        if text.shape[1]:
            assert self.text_feed_forward is not None, "this Q-Former was built without a text side"
            parts.append(self.text_feed_forward(text))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0], cache.keys[0], cache.values[0]


class QFormer(nn.Module):
    """Queries that fetch from an image what text needs of it.

    Attributes:
        queries: the learned queries [1, Q, D].
        head: hidden states to logits over the vocabulary; None without a text side.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.zeros(1, config.num_queries, config.width))
        nn.init.normal_(self.queries, std=0.02)
        # One LayerNorm for queries and text, as in the reference, where both pass BERT's embedding layer.
        self.embed_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(
            QFormerBlock(config, reads_image=i % config.cross_attention_every == 0) for i in range(config.depth)
        )
        self.blocks.apply(init_bert)
        scale_narrow(self.blocks, config.width)
        self.word: nn.Embedding | None = None
        self.position: nn.Embedding | None = None
        self.head: LanguageHead | None = None
        if config.vocab_size is not None:
            self.word = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_id)
            self.position = nn.Embedding(config.max_positions, config.width)
            self.word.apply(init_bert)
            self.position.apply(init_bert)
            if config.writes:
                self.head = LanguageHead(config.text, self.word)

    @property
    def qformer_blocks(self) -> Sequence[QFormerBlock]:
        """The blocks, typed."""
        return cast(Sequence[QFormerBlock], self.blocks)

    @torch.no_grad()
    def start_queries_as_text(self) -> None:
        """Copy the text's feed-forwards into the queries', which start from the same BERT in the reference."""
        for block in self.qformer_blocks:
            if block.text_feed_forward is not None:
                block.query_feed_forward.load_state_dict(block.text_feed_forward.state_dict())

    def remember(self, image_embeds: Tensor, mask: Tensor | None = None) -> ImageMemory:
        """Project features [B, N, memory_width] once for every layer that reads them; mask bool [B, N]."""
        projected = [
            block.cross_attention.project(image_embeds)
            for block in self.qformer_blocks
            if block.cross_attention is not None
        ]
        keys, values = zip(*projected, strict=True)
        return ImageMemory(keys, values, mask)

    def read_image(self, memory: ImageMemory, cache: KVCache | None = None) -> Tensor:
        """Query outputs [B, Q, D]; an empty `cache` keeps the queries' keys and values for `write`."""
        hidden = self._embed_queries(memory.batch_size)
        return self._run(hidden, self.config.num_queries, None, memory=memory, keep=cache)

    def read_text(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Ids [R, T] that begin with [CLS], read alone: hidden states [R, T, D]."""
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        return self._run(self._embed_text(input_ids), 0, mask)

    def read_pair(self, input_ids: Tensor, attention_mask: Tensor | None, memory: ImageMemory) -> Tensor:
        """Query outputs [R, Q, D] of texts [R, T] read together with the images in memory, R a multiple of B."""
        return self.read_together(input_ids, attention_mask, memory, "itm")[:, : self.config.num_queries]

    def read_together(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        memory: ImageMemory,
        kind: Literal["itc", "itm", "itg"],
    ) -> Tensor:
        """Queries and text in one pass under one of `qformer_mask`'s masks, [R, Q + T, D].

        ITM needs it; of ITC and ITG it is the plain way, which `read_image`, `read_text` and `write` equal.
        """
        count = self.config.num_queries
        mask = None
        if kind != "itm" or attention_mask is not None:
            real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
            mask = qformer_mask(kind, count, real)
        hidden = torch.cat((self._embed_queries(input_ids.shape[0]), self._embed_text(input_ids)), dim=1)
        return self._run(hidden, count, mask, memory=memory)

    def write(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache, *, grow: bool = False
    ) -> Tensor:
        """Hidden states [R, T, D] of a text to write, after the queries (and the text so far) in `cache`.

        Args:
            cache: as `read_image` filled it, for R rows.
            grow: count these tokens in, to be continued from (decoding); False leaves the cache as it is.
        """
        count = self.config.num_queries
        if not grow:
            real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
            # Only the text's rows of the mask: the cache has the queries' keys and values, and their outputs are
            # not read.
            mask: Tensor | None = qformer_mask("itg", count, real)[:, :, count:]
            return self._run(self._embed_text(input_ids), 0, mask, past=cache)
        # `place` counts text tokens only, while the keys begin with the queries' slots, which every token may
        # attend to: a causal mask is built with them, any other mask is extended by them.
        positions, mask, causal = cache.place(input_ids, attention_mask)
        if causal:
            mask = qformer_mask("itg", count, torch.ones_like(input_ids[:1], dtype=torch.bool))[:, :, count:]
        elif mask is not None:
            mask = F.pad(mask, (count, 0), value=True)
        return self._run(self._embed_text(input_ids, positions), 0, mask, past=cache, keep=cache)

    def _embed_queries(self, rows: int) -> Tensor:
        # Computed once and expanded without a copy, so all rows share one dropout mask.
        queries = apply_dropout(self.embed_norm(self.queries), self.config.dropout, self.training)
        return queries.expand(rows, -1, -1)

    def _embed_text(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        if self.word is None or self.position is None:
            raise UserError("the Q-Former of this model reads no text; it needs one of stage 1")
        length = input_ids.shape[1]
        if length > self.config.max_positions:
            raise UserError(f"a text of {length} tokens is longer than the {self.config.max_positions} it takes")
        where = self.position.weight[:length] if positions is None else self.position(positions)
        return apply_dropout(self.embed_norm(self.word(input_ids) + where), self.config.dropout, self.training)

    def _run(
        self,
        hidden: Tensor,
        num_queries: int,
        mask: Tensor | None,
        *,
        memory: ImageMemory | None = None,
        past: KVCache | None = None,
        keep: KVCache | None = None,
    ) -> Tensor:
        keys: list[Tensor] = []
        values: list[Tensor] = []
        # The memory has entries only for the layers that read the image.
        reading = 0
        for layer, block in enumerate(self.qformer_blocks):
            read: Read | None = None
            if memory is not None and block.cross_attention is not None:
                read = memory.keys[reading], memory.values[reading], memory.mask
                reading += 1
            before = None if past is None else (past.keys[layer], past.values[layer])
            hidden, key, value = block(hidden, num_queries, mask, read, before)
            keys.append(key)
            values.append(value)
        # Kept after the pass, since a recomputed block runs twice and would append twice.
        if keep is not None:
            keep.keys, keep.values = keys, values
        return hidden
