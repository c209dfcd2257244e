"""What the ONNX graphs of a BLIP model compute, and what each reads and gives.

    image     pixels -> image_features, memory              once for an image
    text      ids -> text_features                          ITC
    match     ids, memory -> itm_logits                     ITM
    decoder   ids, memory, past -> logits, present          a prompt, then one token at a time

The image memory (keys and values of every cross-attention layer) leaves the graph `image` and enters `match` and
`decoder`, so that, as in `models`, no text makes an image be projected again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from openblip.models.blip import Blip
from openblip.models.layers import ImageMemory, KVCache

__all__ = ["EXAMPLE", "Graph", "Port", "graphs_of"]

Tensors: TypeAlias = tuple[Tensor, ...]
EXAMPLE = {"images": 2, "rows": 6, "tokens": 3, "past": 5, "past + tokens": 8}
"""sizes to trace with: no two alike, and none of 1, which would be taken for fixed"""


@dataclass(frozen=True)
class Port:
    """A tensor that a graph reads or gives."""

    name: str
    shape: tuple[int | str, ...]
    """a name for each axis that may have any length"""
    dtype: torch.dtype = torch.float32

    def example(self) -> Tensor:
        """Zeros of the sizes in `EXAMPLE`."""
        return torch.zeros([EXAMPLE[n] if isinstance(n, str) else n for n in self.shape], dtype=self.dtype)


@dataclass(frozen=True)
class Graph:
    """One graph: a function of the model and of tensors, in the order of `inputs`."""

    name: str
    about: str
    compute: Callable[..., Tensor | Tensors]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def graphs_of(model: Blip) -> Iterator[Graph]:
    """The graphs of what `model` can do."""
    text, embed_dim = model.config.text, model.config.embed_dim
    head = text.width // text.num_heads

    def layers(name: str, *shape: int | str) -> tuple[Port, ...]:
        return tuple(Port(f"{name}.{n}.{part}", shape) for part in ("key", "value") for n in range(text.depth))

    memory = layers("memory", "images", text.num_heads, model.vision.num_tokens, head)
    ids = Port("input_ids", ("rows", "tokens"), torch.int64)
    mask = Port("attention_mask", ("rows", "tokens"), torch.int64)
    features = (Port("image_features", ("images", embed_dim)),) if model.config.encoder else ()
    pixels = Port("pixels", ("images", 3, *model.config.vision.pixels), torch.uint8)
    yield Graph("image", "reads images, once for all texts about them", _see, (pixels,), (*features, *memory))
    if model.config.encoder:
        found = Port("text_features", ("rows", embed_dim))
        yield Graph("text", "embeds texts that begin with [CLS] (ITC)", _embed, (ids, mask), (found,))
        logits = Port("itm_logits", ("rows", 2))
        about = "matches texts that begin with [ENC] with images (ITM); the second logit is that of a match"
        yield Graph("match", about, _match, (ids, mask, *memory), (logits,))
    if model.config.decoder:
        mask = Port("attention_mask", ("rows", "past + tokens"), torch.int64)
        past = layers("past", "rows", text.num_heads, "past", head)
        present = layers("present", "rows", text.num_heads, "past + tokens", head)
        logits = Port("logits", ("rows", "tokens", text.vocab_size))
        about = "gives the logits of each next token of texts that begin with [DEC]"
        yield Graph("decoder", about, _step, (ids, mask, *memory, *past), (logits, *present))


def _see(model: Blip, pixels: Tensor) -> Tensors:
    embeds = model.encode_pixels(pixels)
    memory = model.remember(embeds)
    features = (model.image_features(embeds),) if model.config.encoder else ()
    return *features, *memory.keys, *memory.values


def _embed(model: Blip, ids: Tensor, mask: Tensor) -> Tensor:
    return model.text_features(ids, mask.bool())


def _match(model: Blip, ids: Tensor, mask: Tensor, *memory: Tensor) -> Tensor:
    return model.match(ids, mask.bool(), ImageMemory(*_halves(memory)))


def _step(model: Blip, ids: Tensor, mask: Tensor, *tensors: Tensor) -> Tensors:
    memory, past = _halves(tensors)
    keys, values = map(list, _halves(past))
    before = keys[0].shape[2]
    old, new = mask[:, :before].bool(), mask[:, before:].bool()
    cache = KVCache(keys, values, old, old.sum(1), padded=True)
    logits = model.decoder(ids, new, memory=ImageMemory(*_halves(memory)), cache=cache)
    return logits, *cache.keys, *cache.values


def _halves(tensors: Any) -> tuple[Any, Any]:
    """Keys and values, which stand in one row."""
    half = len(tensors) // 2
    return tensors[:half], tensors[half:]
