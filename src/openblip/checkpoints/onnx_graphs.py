"""What the ONNX graphs of a BLIP model compute, and what each reads and gives. Of a captioning or matching model:

    image     pixels -> image_features, memory              once for an image
    text      ids -> text_features                          ITC
    match     ids, memory -> itm_logits                     ITM
    decoder   ids, memory, past -> logits, present          a prompt, then one token at a time

Of a VQA model:

    image     pixels -> memory                              once for an image
    question  ids, memory -> question                       once for a question
    answer    ids, question, past -> logits, present        one token at a time, or a whole candidate

Of a BLIP-2 model of stage 1, whose text reads with the queries:

    image     pixels -> image_features, memory              of each query; once for an image
    text      ids -> text_features                          ITC
    match     ids, memory -> itm_logits                     ITM

The image memory (keys and values of every cross-attention layer) leaves the graph `image` and enters those of
texts, so that, as in `models`, no text makes an image be projected again; nor does an answer its question's states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from openblip.models.blip import Blip
from openblip.models.blip2 import Blip2
from openblip.models.layers import ImageMemory, KVCache
from openblip.models.text import TextDecoder
from openblip.models.vqa import BlipVqa

__all__ = ["EXAMPLE", "Exported", "Graph", "Port", "graphs_of"]

Exported: TypeAlias = Blip | BlipVqa | Blip2
Tensors: TypeAlias = tuple[Tensor, ...]
EXAMPLE = {"images": 2, "questions": 4, "words": 7, "rows": 12, "tokens": 3, "past": 5, "past + tokens": 8}
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


def graphs_of(model: Exported) -> Iterator[Graph]:
    """The graphs of what `model` can do; of BLIP-2 what stage 1 can."""
    if isinstance(model, Blip2):
        yield from _of_queries(model)
        return
    text = model.config.text
    memory = _layers(model, "memory", "images", model.vision.num_tokens)
    ids, mask = _texts("rows")
    pixels = Port("pixels", ("images", 3, *model.config.vision.pixels), torch.uint8)
    about = "reads images, once for all texts about them"
    present = _layers(model, "present", "rows", "past + tokens")
    step = (ids, Port("attention_mask", ("rows", "past + tokens"), torch.int64))
    past = _layers(model, "past", "rows", "past")
    logits = Port("logits", ("rows", "tokens", text.vocab_size))
    if isinstance(model, BlipVqa):
        yield Graph("image", about, _see_to_answer, (pixels,), memory)
        question = _layers(model, "question", "questions", "words")
        reads = Port("input_ids", ("questions", "words"), torch.int64)
        of_question = Port("question_mask", ("questions", "words"), torch.int64)
        about = "reads questions that begin with [ENC], once for all answers to them"
        yield Graph("question", about, _read, (reads, of_question, *memory), question)
        about = "gives the logits of each next token of answers that begin with [DEC]"
        yield Graph("answer", about, _answer, (*step, of_question, *question, *past), (logits, *present))
        return
    features = (Port("image_features", ("images", model.config.embed_dim)),) if model.config.encoder else ()
    yield Graph("image", about, _see, (pixels,), (*features, *memory))
    if model.config.encoder:
        found = Port("text_features", ("rows", model.config.embed_dim))
        yield Graph("text", "embeds texts that begin with [CLS] (ITC)", _embed, (ids, mask), (found,))
        matched = Port("itm_logits", ("rows", 2))
        about = "matches texts that begin with [ENC] with images (ITM); the second logit is that of a match"
        yield Graph("match", about, _match, (ids, mask, *memory), (matched,))
    if model.config.decoder:
        about = "gives the logits of each next token of texts that begin with [DEC]"
        yield Graph("decoder", about, _caption, (*step, *memory, *past), (logits, *present))


def _of_queries(model: Blip2) -> Iterator[Graph]:
    config, tower, (rows, columns) = model.config.qformer, model.vision, model.vision.grid
    shape = ("images", config.num_heads, tower.first + rows * columns, config.width // config.num_heads)
    readers = sum(block.cross_attention is not None for block in model.qformer.qformer_blocks)
    memory = _keys_and_values("memory", shape, readers)
    ids, mask = _texts("rows")
    pixels = Port("pixels", ("images", 3, *tower.pixels), torch.uint8)
    features = Port("image_features", ("images", config.num_queries, model.config.embed_dim))
    yield Graph("image", "reads images, once for all texts about them", _query, (pixels,), (features, *memory))
    found = Port("text_features", ("rows", model.config.embed_dim))
    yield Graph("text", "embeds texts that begin with [CLS] (ITC)", _embed, (ids, mask), (found,))
    about = "matches texts that begin with [CLS] with images (ITM); the second logit is that of a match"
    yield Graph("match", about, _match, (ids, mask, *memory), (Port("itm_logits", ("rows", 2)),))


def _query(model: Blip2, pixels: Tensor) -> Tensors:
    # The tower itself: what stands around it against autocast is nothing to export.
    tower = model.vision
    memory = model.remember(model.normalize_features(tower.encoder(tower.normalize(pixels))))
    return model.image_features(model.read_image(memory)), *memory.keys, *memory.values


def _layers(model: Blip | BlipVqa, name: str, rows: str, length: int | str) -> tuple[Port, ...]:
    """Keys of every layer, then values, [rows, heads, length, width of a head]."""
    text = model.config.text
    return _keys_and_values(name, (rows, text.num_heads, length, text.width // text.num_heads), text.depth)


def _keys_and_values(name: str, shape: tuple[int | str, ...], layers: int) -> tuple[Port, ...]:
    return tuple(Port(f"{name}.{n}.{part}", shape) for part in ("key", "value") for n in range(layers))


def _texts(rows: str) -> tuple[Port, Port]:
    return Port("input_ids", (rows, "tokens"), torch.int64), Port("attention_mask", (rows, "tokens"), torch.int64)


def _see(model: Blip, pixels: Tensor) -> Tensors:
    embeds = model.encode_pixels(pixels)
    memory = model.remember(embeds)
    features = (model.image_features(embeds),) if model.config.encoder else ()
    return *features, *memory.keys, *memory.values


def _embed(model: Blip | Blip2, ids: Tensor, mask: Tensor) -> Tensor:
    return model.text_features(ids, mask.bool())


def _match(model: Blip | Blip2, ids: Tensor, mask: Tensor, *memory: Tensor) -> Tensor:
    return model.match(ids, mask.bool(), ImageMemory(*_halves(memory)))


def _caption(model: Blip, ids: Tensor, mask: Tensor, *tensors: Tensor) -> Tensors:
    memory, past = _halves(tensors)
    return _step(model.decoder, ids, mask, ImageMemory(*_halves(memory)), past)


def _see_to_answer(model: BlipVqa, pixels: Tensor) -> Tensors:
    memory = model.remember(model.encode_pixels(pixels))
    return *memory.keys, *memory.values


def _read(model: BlipVqa, ids: Tensor, mask: Tensor, *memory: Tensor) -> Tensors:
    states = model.read_question(ids, mask.bool(), ImageMemory(*_halves(memory)))
    question = model.remember_question(states, mask.bool())
    return *question.keys, *question.values


def _answer(model: BlipVqa, ids: Tensor, mask: Tensor, of_question: Tensor, *tensors: Tensor) -> Tensors:
    question, past = _halves(tensors)
    memory = ImageMemory(*_halves(question), of_question.bool())
    return _step(model.text_decoder, ids, mask, memory, past)


def _step(decoder: TextDecoder, ids: Tensor, mask: Tensor, memory: ImageMemory, past: Tensors) -> Tensors:
    keys, values = map(list, _halves(past))
    before = keys[0].shape[2]
    old, new = mask[:, :before].bool(), mask[:, before:].bool()
    cache = KVCache(keys, values, old, old.sum(1), padded=True)
    logits = decoder(ids, new, memory=memory, cache=cache)
    return logits, *cache.keys, *cache.values


def _halves(tensors: Any) -> tuple[Any, Any]:
    """Keys and values, which stand in one row."""
    half = len(tensors) // 2
    return tensors[:half], tensors[half:]
