"""Grad-CAM over a cross-attention layer: for each word, the patches that contributed to it.

The map of a token is its attention over the image's patches, weighted by the gradient of what is asked (only
what raises it counts) and averaged over heads (Selvaraju et al. 2017; Li et al. 2021, ALBEF, section 6.6):

    map[t, n] = mean over heads of attention[h, t, n] * max(0, d score / d attention[h, t, n])

For a match the score is the ITM logit of "matched", one for the whole text. For a caption the score of a token is
its own log-probability, read where the model was about to write it. In BLIP-2 the queries alone read the image, so
a match has one map for the whole text, the sum over the queries' maps.

Shapes: T tokens, H heads, N image tokens ([CLS] first), h x w patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.generation.rank import token_log_probs
from openblip.models.blip import Blip
from openblip.models.blip2 import Blip2
from openblip.models.layers import CrossAttention, ImageMemory
from openblip.models.qformer import QFormerBlock
from openblip.models.text import TextBlock

__all__ = [
    "WordMap",
    "attention_gradients",
    "caption_maps",
    "default_layer",
    "match_maps",
    "peak_of",
    "reading_layer",
]


@dataclass(frozen=True, slots=True)
class WordMap:
    """Where a model looked for a word."""

    word: str
    weights: Tensor
    """float32 [h, w], not negative, not scaled: words of one text can be compared"""


def default_layer(depth: int) -> int:
    """The layer (from 0) that is shown unless another is requested: two thirds up, as ALBEF's ninth of twelve.

    Never the last: a match is judged by [ENC] alone, so the attention of the words in the last layer has no effect.
    """
    return max(min(depth * 2 // 3, depth - 2), 0)


def reading_layer(model: Blip | Blip2, layer: int | None) -> int:
    """The layer that is shown, by what was requested: of BLIP-2 those of the Q-Former count that read the image."""
    if layer is not None:
        return layer
    if isinstance(model, Blip):
        return default_layer(model.config.text.depth)
    return len(_readers(model.qformer.qformer_blocks)) * 2 // 3


def _readers(blocks: Sequence[TextBlock] | Sequence[QFormerBlock]) -> list[CrossAttention]:
    return [block.cross_attention for block in blocks if block.cross_attention is not None]


def attention_gradients(
    readers: Sequence[CrossAttention], layer: int, score: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Attention probabilities [R, H, T, N] of a layer, and the gradient of `score()` by them.

    Args:
        readers: the layers' cross-attentions.
        score: runs the model over one image; returns a scalar.

    Raises:
        UserError: there is no such layer.
    """
    if not 0 <= layer < len(readers):
        raise UserError(f"there is no layer {layer}; those that read the image are 0 to {len(readers) - 1}")
    attention = readers[layer]
    seen: list[Tensor] = []

    def observer(probabilities: Tensor) -> Tensor:
        seen.append(probabilities.detach().requires_grad_())
        return seen[0]

    with torch.enable_grad(), attention.observed(observer):
        value = score()
        (gradient,) = torch.autograd.grad(value, seen)
    return seen[0].detach(), gradient


def match_maps(
    model: Blip | Blip2, tokenizer: TextTokenizer, memory: ImageMemory, text: str, *, layer: int | None = None
) -> list[WordMap]:
    """For each word of `text`, of BLIP-2 for the whole of it, the patches that make it match the image in `memory`.

    Raises:
        UserError: the model does not match, there is no such layer, or it is the last of BLIP.
    """
    if isinstance(model, Blip2):
        return [_map_of_queries(model, tokenizer, memory, text, reading_layer(model, layer))]
    encoder = model.encoder
    ids = tokenizer.encode([text], first="enc", max_length=model.config.text.max_positions).input_ids
    ids = ids.to(memory.keys[0].device)
    chosen = reading_layer(model, layer)
    if chosen == len(encoder.text_blocks) - 1:
        raise UserError(
            f"in the last layer, {chosen}, no word has a say in a match, only [ENC] is read; choose a lower one"
        )

    weights = _weigh(*attention_gradients(_readers(encoder.text_blocks), chosen, _matching(model, ids, memory)))
    return _by_word(model, tokenizer, weights[0, 1:-1], ids[0, 1:-1])


def _map_of_queries(model: Blip2, tokenizer: TextTokenizer, memory: ImageMemory, text: str, layer: int) -> WordMap:
    ids = tokenizer.encode([text], max_length=model.config.qformer.max_positions).input_ids
    score, (rows, columns) = _matching(model, ids.to(memory.keys[0].device), memory), model.vision.grid
    weights = _weigh(*attention_gradients(_readers(model.qformer.qformer_blocks), layer, score))[0]  # [Q, N]
    return WordMap(text, weights.sum(0)[-rows * columns :].view(rows, columns))


def _matching(model: Blip | Blip2, ids: Tensor, memory: ImageMemory) -> Callable[[], Tensor]:
    """How much more likely ITM finds a match than none, of the text [1, T] and the image in `memory`; a scalar."""

    def score() -> Tensor:
        logits = model.match(ids, None, memory).float()
        return logits[0, 1] - logits[0, 0]

    return score


def caption_maps(
    model: Blip,
    tokenizer: TextTokenizer,
    memory: ImageMemory,
    text: str,
    *,
    prompt: str = "",
    layer: int | None = None,
) -> list[WordMap]:
    """For each word of `text`, a caption of the one image in `memory`, the patches that let it be written.

    Raises:
        UserError: the model does not write captions, or there is no such layer.
    """
    decoder = model.decoder
    limit = model.config.text.max_positions
    tokens, start = tokenizer.encode_after(prompt, [text], max_length=limit)
    ids = tokens.input_ids.to(memory.keys[0].device)
    chosen = reading_layer(model, layer)
    places = torch.arange(start - 1, ids.shape[1] - 2, device=ids.device)  # where each word's piece is predicted
    # A row for each piece, so that each has a gradient of its own; all rows read the one memory.
    rows = ids.expand(len(places), -1)

    def score() -> Tensor:
        own = token_log_probs(decoder(rows, memory=memory), rows)
        return own[torch.arange(len(places), device=ids.device), places].sum()

    attention, gradient = attention_gradients(_readers(decoder.transformer.text_blocks), chosen, score)
    weights = _weigh(attention, gradient)[torch.arange(len(places), device=ids.device), places]
    return _by_word(model, tokenizer, weights, ids[0, start:-1])


def _weigh(attention: Tensor, gradient: Tensor) -> Tensor:
    """[R, H, T, N] twice -> [R, T, N]."""
    return (attention * gradient.clamp(min=0)).float().mean(1).cpu()


def _by_word(model: Blip, tokenizer: TextTokenizer, weights: Tensor, ids: Tensor) -> list[WordMap]:
    """Average the maps [T, N] of a word's pieces, without [CLS], which is no place in the image."""
    grid = model.config.vision.grid
    words: list[tuple[list[int], list[Tensor]]] = []
    for number, piece, row in zip(
        ids.tolist(), tokenizer.tokens(ids), weights[:, 1:].reshape(-1, *grid), strict=True
    ):
        if not (piece.startswith("##") and words):
            words.append(([], []))
        words[-1][0].append(number)
        words[-1][1].append(row)
    return [WordMap(tokenizer.decode(pieces), torch.stack(maps).mean(0)) for pieces, maps in words]


def peak_of(weights: Tensor) -> tuple[float, float]:
    """Centre (x, y) of the patch with the largest weight of a map [h, w], in shares of the image's sides."""
    rows, columns = weights.shape
    place = int(weights.argmax())
    return (place % columns + 0.5) / columns, (place // columns + 0.5) / rows
