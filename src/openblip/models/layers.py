"""The parts that every text model here is made of: attention, the image memory and the KV cache.

Shapes: B images, R text rows (R is a multiple of B where rows read images), T text tokens, S tokens in
the cache, N image tokens, D width, H heads, d = D / H. Masks are bool, True = may attend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.compute import uses_fused_attention
from openblip.models.dropout import apply_dropout
from openblip.models.products import Linear, linear

__all__ = [
    "CrossAttention",
    "FeedForward",
    "ImageMemory",
    "KVCache",
    "PairCrossAttention",
    "SelfAttention",
    "attend",
    "scale_narrow",
    "split_heads",
]


@dataclass(frozen=True)
class ImageMemory:
    """Keys and values of a batch of images, projected once for each cross-attention layer.

    Whatever reads the images takes this and never the raw features: matching, writing, every beam, every
    candidate. Rows that read one image stand together: with R rows, row r reads image r // (R / B).
    """

    keys: tuple[Tensor, ...]
    """Keys of each cross-attention layer, [B, H, N, d]."""
    values: tuple[Tensor, ...]
    """Values of each cross-attention layer, [B, H, N, d]."""
    mask: Tensor | None = None
    """bool [B, N], True for tokens that may be read; None where all may."""

    @property
    def batch_size(self) -> int:
        """Number of images, B."""
        return self.keys[0].shape[0]

    def select(self, index: Tensor) -> ImageMemory:
        """Memory of the images `index` int64 [K], in that order: a gather, never a re-projection."""
        return ImageMemory(
            tuple(key.index_select(0, index) for key in self.keys),
            tuple(value.index_select(0, index) for value in self.values),
            None if self.mask is None else self.mask.index_select(0, index),
        )

    def join(self, other: ImageMemory) -> ImageMemory:
        """These images, then those of `other`, which are as long; neither has a mask."""
        assert self.mask is other.mask is None, "no mask is joined"
        pairs = zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True)
        both = tuple(torch.cat(pair) for pair in pairs)
        return ImageMemory(both[: len(self.keys)], both[len(self.keys) :])

    def frames(self, count: int) -> ImageMemory:
        """The frames of B videos as images of their own, [B * `count`, H, N, d] of [B, H, `count` * N, d]."""

        def apart(part: Tensor) -> Tensor:
            return part.unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1)

        mask = None if self.mask is None else self.mask.unflatten(1, (count, -1)).flatten(0, 1)
        return ImageMemory(tuple(map(apart, self.keys)), tuple(map(apart, self.values)), mask)

    def detach(self) -> ImageMemory:
        """The same values without gradient."""
        return ImageMemory(tuple(k.detach() for k in self.keys), tuple(v.detach() for v in self.values), self.mask)

    @property
    def nbytes(self) -> int:
        """Bytes that keys and values take."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


@dataclass
class KVCache:
    """Keys and values of the text so far, for each layer of a decoder; grows as tokens come.

    Rows may differ in length: `mask` tells which slots hold real tokens and `lengths` how many, which is
    also the position of a row's next token.
    """

    keys: list[Tensor] = field(default_factory=list)
    """Keys of each layer, [R, H, S, d]."""
    values: list[Tensor] = field(default_factory=list)
    mask: Tensor | None = None
    """bool [R, S], True for slots that hold real tokens."""
    lengths: Tensor | None = None
    """int64 [R], number of real tokens of each row."""
    padded: bool = False
    """Whether some slot of the mask is False, so that attention needs the mask."""

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values [R, H, T, d] of new tokens; return all [R, H, S + T, d]."""
        # Layers run in order, so a layer that is not there yet is the next one, at the text's first tokens.
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        else:
            self.keys[layer] = torch.cat((self.keys[layer], key), dim=2)
            self.values[layer] = torch.cat((self.values[layer], value), dim=2)
        return self.keys[layer], self.values[layer]

    def extend_mask(self, mask: Tensor) -> None:
        """Count the new tokens' mask, bool [R, T], in."""
        added = mask.sum(1)
        self.mask = mask if self.mask is None else torch.cat((self.mask, mask), dim=1)
        self.lengths = added if self.lengths is None else self.lengths + added

    def place(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None, bool]:
        """Count new tokens [R, T] in: their positions [R, T], the mask attention needs, whether it is causal.

        Args:
            attention_mask: bool [R, T], padding on the right; None when all are real.
        """
        rows, length = input_ids.shape
        first = self.mask is None
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        else:
            # Whether the mask has a False is not looked up, which would wait for the device.
            self.padded = self.padded or length > 1
        start = torch.zeros(rows, dtype=torch.int64, device=input_ids.device) if first else self.lengths
        assert start is not None
        # Positions count real tokens: after a padded prompt a row continues at its own length, not at the slot's
        # index.
        positions = start[:, None] + torch.arange(length, device=input_ids.device)
        before = 0 if self.mask is None else self.mask.shape[1]
        self.extend_mask(attention_mask)
        assert self.mask is not None
        if first:
            # Padding is on the right, so the causal mask alone hides it from every real token.
            return positions, None, True
        if length == 1:
            return positions, self.mask[:, None, None, :] if self.padded else None, False
        # New token t attends to all cached slots and to new tokens 0..t: the diagonal starts after the cache.
        order = torch.ones(length, before + length, dtype=torch.bool, device=input_ids.device).tril(before)
        return positions, self.mask[:, None, None, :] & order, False

    def reorder(self, index: Tensor) -> None:
        """Keep rows `index` int64 [R'], in that order."""
        self.keys = [key.index_select(0, index) for key in self.keys]
        self.values = [value.index_select(0, index) for value in self.values]
        if self.mask is not None and self.lengths is not None:
            self.mask = self.mask.index_select(0, index)
            self.lengths = self.lengths.index_select(0, index)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, D] -> [B, H, T, d]."""
    batch, length, width = x.shape
    return x.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def _merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    observe: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scaled dot-product attention of queries [R, H, T, d] over keys and values [R, H, S, d]; returns [R, H, T, d].

    Args:
        mask: bool, broadcastable to [R, H, T, S]; each query may attend to at least one key.
        causal: query t attends to keys 0..t; not together with `mask`.
        observe: called with the probabilities [R, H, T, S]; what it returns is used in their place.
    """
    if observe is None and uses_fused_attention(query.device, query.dtype):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout
        )
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        # A bias has a free backward, and a finite one leaves no row without a number.
        scores += torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill_(
            ~mask, torch.finfo(scores.dtype).min
        )
    probabilities = scores.softmax(-1)
    if observe is not None:
        probabilities = observe(probabilities)
    return apply_dropout(probabilities, dropout, dropout > 0) @ value


def _observe_rows(observer: Callable[[Tensor], Tensor], length: int, folded: Tensor) -> Tensor:
    """Pass [B, H, R / B * T, N], an image's rows folded into one, through `observer` as [R, H, T, N]."""
    rows = folded.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
    return observer(rows).unflatten(0, (len(folded), -1)).transpose(1, 2).flatten(2, 3)


class SelfAttention(nn.Module):
    """Multi-head self-attention with residual and post-norm, as BERT's.

    Args:
        width: D.
        num_heads: H, a divisor of D.
        dropout: of the attention weights and of the output.
        eps: of the LayerNorm.
    """

    def __init__(self, width: int, num_heads: int, *, dropout: float, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self,
        hidden: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        layer: int = 0,
        first_only: bool = False,
    ) -> Tensor:
        """[R, T, D] -> [R, T, D].

        Args:
            mask: bool, broadcastable to [R, 1, T, S]; None lets every token see every token.
            causal: token t sees tokens 0..t; not together with `mask`.
            first_only: give the first token's row alone, [R, 1, D].
        """
        if first_only:
            # `qkv` stacks query, key and value: all tokens need keys and values, the first alone needs a query.
            width, weight, bias = hidden.shape[-1], self.qkv.weight, self.qkv.bias
            parts = linear(hidden, weight[width:], bias[width:]).chunk(2, dim=-1)
            hidden = hidden[:, :1]
            parts = (linear(hidden, weight[:width], bias[:width]), *parts)
        else:
            parts = self.qkv(hidden).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in parts)
        if cache is not None:
            key, value = cache.append(layer, key, value)
        dropout = self.dropout if self.training else 0.0
        context = attend(query, key, value, mask=mask, causal=causal, dropout=dropout)
        projected = apply_dropout(self.output(_merge_heads(context)), self.dropout, self.training)
        return self.norm(hidden + projected)


class CrossAttention(nn.Module):
    """Text reads the image memory; keys and values are made by `project`, once for an image.

    Args:
        width: D of the text.
        memory_width: width of the image features.
    """

    def __init__(self, width: int, num_heads: int, memory_width: int, *, dropout: float, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = Linear(width, width)
        self.key_value = Linear(memory_width, 2 * width)
        self.output = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self._observer: Callable[[Tensor], Tensor] | None = None

    @contextmanager
    def observed(self, observer: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within, each reading passes its attention probabilities [R, H, T, N] through `observer`.

        What `observer` returns is used in their place, so that it may record them, replace them, or return a leaf
        whose gradient is wanted. The probabilities are computed in full; fused attention never holds them.
        """
        before, self._observer = self._observer, observer
        try:
            yield
        finally:
            self._observer = before

    def project(self, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, memory_width] -> keys and values, [B, H, N, d] each."""
        key, value = self.key_value(image_embeds).chunk(2, dim=-1)
        # Every product that reads them would copy them otherwise: each pass, each token that is written.
        return split_heads(key, self.num_heads).contiguous(), split_heads(value, self.num_heads).contiguous()

    def read(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """What [R, T, D] reads in keys and values [B, H, N, d], projected, [R, T, D]; mask bool [B, N].

        The R / B rows of an image are folded into one longer row of queries, so its keys and values are
        neither copied nor read more than once.
        """
        rows, length, width = hidden.shape
        images = key.shape[0]
        assert rows % images == 0, f"{rows} rows cannot be shared out over {images} images"
        # Queries do not attend to each other here, so the rows of an image can stand in one sequence.
        query = self.query(hidden).view(images, rows // images * length, width)
        context = attend(
            split_heads(query, self.num_heads),
            key,
            value,
            mask=None if mask is None else mask[:, None, None, :],
            dropout=self.dropout if self.training else 0.0,
            observe=None if self._observer is None else partial(_observe_rows, self._observer, length),
        )
        return self.output(_merge_heads(context).view(rows, length, width))

    def forward(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """[R, T, D] -> [R, T, D]; arguments as `read`."""
        projected = apply_dropout(self.read(hidden, key, value, mask), self.dropout, self.training)
        return self.norm(hidden + projected)


class PairCrossAttention(CrossAttention):
    """Text reads two images, each by its own projections; what it reads is merged (Li et al. 2022, section 5.4).

    Memories of pairs have keys and values [B, 2, H, N, d].

    Args:
        merge: join by a learned linear layer over both readings; False takes their average.
    """

    def __init__(
        self, width: int, num_heads: int, memory_width: int, *, dropout: float, eps: float, merge: bool
    ) -> None:
        super().__init__(width, num_heads, memory_width, dropout=dropout, eps=eps)
        self.second = CrossAttention(width, num_heads, memory_width, dropout=dropout, eps=eps)
        del self.second.norm  # the sum is normalised once, here
        self.merge = Linear(2 * width, width) if merge else None

    def project(self, image_embeds: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2, N, memory_width] -> keys and values, [B, 2, H, N, d] each."""
        first, second = super().project(image_embeds[:, 0]), self.second.project(image_embeds[:, 1])
        return torch.stack((first[0], second[0]), dim=1), torch.stack((first[1], second[1]), dim=1)

    def read(self, hidden: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `CrossAttention.read`, of both images; mask bool [B, 2, N]."""
        masks = (None, None) if mask is None else (mask[:, 0], mask[:, 1])
        first = super().read(hidden, key[:, 0], value[:, 0], masks[0])
        second = self.second.read(hidden, key[:, 1], value[:, 1], masks[1])
        return (first + second) / 2 if self.merge is None else self.merge(torch.cat((first, second), dim=-1))


class FeedForward(nn.Module):
    """Two linear layers with GELU, residual and post-norm, as BERT's."""

    def __init__(self, width: int, inner_width: int, *, dropout: float, eps: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.inner = Linear(width, inner_width)
        self.output = Linear(inner_width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """[R, T, D] -> [R, T, D]."""
        # The exact GELU (erf), as BERT's, not the tanh approximation.
        projected = apply_dropout(self.output(F.gelu(self.inner(hidden))), self.dropout, self.training)
        return self.norm(hidden + projected)


@torch.no_grad()
def scale_narrow(blocks: nn.Module, width: int) -> None:
    """Make the newly initialized matrices of blocks narrower than 768 larger, by sqrt(768 / width).

    The usual standard deviation of 0.02 is right for a width of 768. With it, what a layer of a narrow model adds
    to its input is small beside it, and the model hardly reads its image at first."""
    if width < 768:
        for module in blocks.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_((768 / width) ** 0.5)
