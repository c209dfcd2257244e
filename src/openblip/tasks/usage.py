"""What using a finished model on so many images will take on a card, computed on any machine, no weight in memory.

    costs = model_costs(adapter, torch.bfloat16, batch=64, text_tokens=12)
    work = Work("captions", costs, images=5000, written=5000, decode=decode)
    predicted = usage([work], GPUS["h100"])

Each piece of work (seeing images, reading texts, writing) runs once on tensors without values (`tasks.cost`), which
counts its arithmetic and the memory it holds in passing. Language models count two operations for each parameter
and token. Writing goes token by token: where reading the writer's weights from the card's memory, which each step
does, is slower than the arithmetic, that is what takes the time. Decoding of image files, the loading of the model
and the starting of kernels are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.gpus import ARITHMETIC_SHARE, MEMORY_SHARE, Gpu
from openblip.core.tokenizer import TokenBatch
from openblip.generation.config import DecodeConfig
from openblip.tasks.cost import GIB, RESERVE, Meter, give_storage, without_values
from openblip.tasks.protocols import Adapter

__all__ = ["ModelCosts", "Phase", "Usage", "Work", "model_costs", "usage"]


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """Of one model at one batch; operations of one image, text or token, sizes in bytes."""

    dtype: torch.dtype
    parameters: int
    weights: int
    batch: int
    see: float
    """an image becomes features and a memory"""
    read: float = 0.0
    """a text is read with its image"""
    embed: float = 0.0
    """a text is embedded alone"""
    prefill: float = 0.0
    """what stands before a text that is written is read, for one prompt"""
    token: float = 0.0
    """a token is written"""
    writer: int = 0
    """weights that each token reads"""
    context: int = 0
    """keys and values of an image, or of a question, that each token reads, whatever the number of beams"""
    cache: int = 0
    """keys and values of one token"""
    prompt: int = 0
    """tokens that each beam keeps before its text"""
    vocabulary: int = 0
    passing: int = 0
    """the most held beside the weights while a batch is seen and read"""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one model does."""

    name: str
    costs: ModelCosts
    images: int = 0
    """seen"""
    read: int = 0
    """texts read with their images"""
    embedded: int = 0
    written: int = 0
    """prompts continued"""
    decode: DecodeConfig | None = None
    likelihoods: float = 0.0
    """tokens of given texts whose likelihood is computed"""


@dataclass(frozen=True)
class Phase:
    """A part of the work on one card."""

    name: str
    tflop: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of all the work, shared out among cards."""

    gpu: Gpu
    gpus: int
    phases: tuple[Phase, ...]
    parameters: int
    weights_gib: float
    passing_gib: float

    @property
    def tflop(self) -> float:
        """Of all the work."""
        return sum(phase.tflop for phase in self.phases)

    @property
    def memory_gib(self) -> float:
        """Of one GPU, with what is set aside for the CUDA context and fragments."""
        return self.weights_gib + self.passing_gib + RESERVE

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.memory_gib <= self.gpu.gib

    @property
    def hours(self) -> float:
        """With the work shared out evenly."""
        return sum(phase.seconds for phase in self.phases) / self.gpus / 3600


def usage(
    work: Sequence[Work], gpu: Gpu, *, gpus: int = 1, mfu: float = ARITHMETIC_SHARE, resident: int | None = None
) -> Usage:
    """Predict the work of models that are on the card together.

    Args:
        mfu: share of the card's arithmetic that is assumed to last.
        resident: bytes of weights, where several of `work` are of one model; None takes each `costs` once.

    Raises:
        UserError: a number makes no sense.
    """
    if gpus < 1:
        raise UserError(f"--gpus must be at least 1, not {gpus}")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu must be above 0 and at most 1, not {mfu:g}")
    models = list({id(one.costs): one.costs for one in work}.values())
    phases = [phase for one in work for phase in _phases(one, gpu, mfu)]
    weights = sum(model.weights for model in models) if resident is None else resident
    return Usage(
        gpu=gpu,
        gpus=gpus,
        phases=tuple(phase for phase in phases if phase.tflop),
        parameters=sum(model.parameters for model in models),
        weights_gib=weights / GIB,
        passing_gib=max((max(one.costs.passing, _writing_bytes(one)) for one in work), default=0) / GIB,
    )


def _rate(costs: ModelCosts, gpu: Gpu, mfu: float) -> float:
    """Operations in a second."""
    return (gpu.tflops_float32 if costs.dtype == torch.float32 else gpu.tflops) * mfu * 1e12


def _phases(work: Work, gpu: Gpu, mfu: float) -> list[Phase]:
    costs, rate = work.costs, _rate(work.costs, gpu, mfu)
    read = work.read * costs.read + work.embedded * costs.embed
    plain = {"images": work.images * costs.see, "texts read": read, "likelihoods": work.likelihoods * costs.token}
    phases = [Phase(f"{work.name}: {name}", flops / 1e12, flops / rate) for name, flops in plain.items()]
    if work.written and work.decode is not None:
        phases.append(_writing(work, work.decode, gpu, rate))
    return phases


def _rows(decode: DecodeConfig) -> int:
    """Texts that are continued at once for a prompt."""
    return decode.num_sequences if decode.sample else decode.num_beams


def _writing(work: Work, decode: DecodeConfig, gpu: Gpu, rate: float) -> Phase:
    costs, rows, steps = work.costs, _rows(decode), decode.max_new_tokens
    batch = min(costs.batch, work.written)
    flops = work.written * (costs.prefill + rows * steps * costs.token)
    # On average half of the text is there.
    own = rows * (costs.prompt + steps / 2) * costs.cache
    moved = costs.writer + batch * (costs.context + own)
    arithmetic = batch * rows * costs.token / rate
    step = max(arithmetic, moved / (gpu.gb_per_s * 1e9 * MEMORY_SHARE))
    seconds = work.written * costs.prefill / rate + math.ceil(work.written / batch) * steps * step
    return Phase(f"{work.name}: writing", flops / 1e12, seconds)


def _writing_bytes(work: Work) -> int:
    """Memory of the images, caches of all beams, and scores in float32, which the search holds three times."""
    if not work.written or work.decode is None:
        return 0
    costs, rows = work.costs, _rows(work.decode)
    cache = rows * (costs.prompt + work.decode.max_new_tokens) * costs.cache
    return costs.batch * (costs.context + 2 * cache + rows * costs.vocabulary * 4 * 3)  # 2: reordering copies it


# Models ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def model_costs(adapter: Adapter, dtype: torch.dtype, *, batch: int, text_tokens: int) -> ModelCosts:
    """Count the pieces of work of a model that lies on "meta".

    Args:
        dtype: that is computed in; frozen parts that have their own keep it.
        batch: images, or questions, at once.
        text_tokens: of a text that is read.
    """
    adapter.move(torch.device("meta"), dtype)
    model = adapter.model
    values = [*model.parameters(), *model.buffers()]
    weights = sum(value.numel() * value.element_size() for value in values)
    told: dict[str, Any] = {"dtype": dtype, "batch": batch, "weights": weights}
    told["parameters"] = sum(value.numel() for value in model.parameters())
    asks = _asks_blip(adapter)
    if adapter.family == "blip" and (asks or "caption" in adapter.can):
        told |= _blip_writer(adapter, text_tokens, dtype)
    elif adapter.family == "blip2" and model.language is not None:
        told |= _language_writer(adapter, text_tokens)
    runs = _Runs(adapter, batch, text_tokens)
    with without_values() as meter:
        give_storage(model)
        see, held = _counted(meter, runs.see)
        read = 0.0
        if asks or "match" in adapter.can or "judge" in adapter.can:
            flops, more = _counted(meter, runs.read)
            read, held = flops - see, max(held, more)
        if "embed" in adapter.can:
            told["embed"] = _counted(meter, runs.embed)[0] / batch
        if adapter.family == "blip" and "writer" in told:
            flops, more = _counted(meter, runs.write)
            told["token"] = (flops - see - (read if asks else 0.0)) / batch / text_tokens
            held = max(held, more)
        if adapter.family == "blip2" and "writer" in told:
            flops, more = _counted(meter, runs.soft)
            told["prefill"] += (flops - see) / batch
            held = max(held, more)
    return ModelCosts(**told, see=see / batch, read=read / batch, passing=held)


def _asks_blip(adapter: Adapter) -> bool:
    return adapter.family == "blip" and "answer" in adapter.can


class _Runs:
    """Pieces of work, each from the images on, to be run where tensors have no values."""

    def __init__(self, adapter: Adapter, batch: int, length: int) -> None:
        self._adapter: Any = adapter
        self._batch, self._length = batch, length

    def _text(self) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(self._batch, self._length, dtype=torch.int64)
        return ids, torch.ones(self._batch, self._length, dtype=torch.bool)

    def _embeds(self) -> Tensor:
        size = self._adapter.image_size
        height, width = (size, size) if isinstance(size, int) else size
        images = self._batch * (2 if "judge" in self._adapter.can else 1)
        embeds: Tensor = self._adapter.model.encode_pixels(torch.zeros(images, 3, height, width, dtype=torch.uint8))
        return embeds

    def see(self) -> Any:
        embeds = self._embeds()
        if "judge" in self._adapter.can:
            return self._adapter.remember(embeds.unflatten(0, (-1, 2)))
        memory = self._adapter.remember(embeds) if hasattr(self._adapter.model, "remember") else None
        if "embed" in self._adapter.can:
            self._adapter.image_features(embeds)
        return memory

    def read(self) -> Any:
        memory, (ids, mask) = self.see(), self._text()
        if "judge" in self._adapter.can:
            return self._adapter.model.classify(ids, mask, memory)
        if "match" in self._adapter.can:
            return self._adapter.match(ids, mask, memory)
        return self._adapter.read(memory, TokenBatch(ids, mask))

    def embed(self) -> Any:
        return self._adapter.text_features(*self._text())

    def write(self) -> Any:
        ids, mask = self._text()
        if _asks_blip(self._adapter):
            return self._adapter.model.text_decoder(ids, mask, memory=self.read())
        return self._adapter.model.decoder(ids, mask, memory=self.see())

    def soft(self) -> Any:
        return self._adapter.model.soft_prompt(self.see())


def _counted(meter: Meter, run: Callable[[], Any]) -> tuple[float, int]:
    """Operations of `run`, and the most bytes it holds beside the weights."""
    held = meter.peak = meter.now
    before = meter.flops + meter.attention_flops
    kept = run()
    del kept
    return float(meter.flops + meter.attention_flops - before), meter.peak - held


def _blip_writer(adapter: Adapter, text_tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    config, model, size = adapter.model.config, adapter.model, dtype.itemsize
    decoder = model.text_decoder
    vision = config.vision
    images = math.prod(side // vision.patch_size for side in vision.pixels) + 1
    read = text_tokens if _asks_blip(adapter) else images
    cache = 2 * config.text.depth * config.text.width * size
    writer = sum(value.numel() * value.element_size() for value in decoder.parameters())
    return {
        "writer": writer,
        "context": read * cache,
        "cache": cache,
        "prompt": 1,
        "vocabulary": config.text.vocab_size,
    }


def _language_writer(adapter: Adapter, text_tokens: int) -> dict[str, Any]:
    """Of a language model behind soft prompts: two operations for each parameter and token."""
    llm, queries = adapter.model.llm, adapter.model.config.qformer.num_queries
    described = llm.hf.config.get_text_config()
    embeddings = llm.hf.get_input_embeddings().weight
    tied = embeddings is llm.hf.get_output_embeddings().weight
    own = sum(value.numel() for value in llm.hf.parameters()) - (0 if tied else embeddings.numel())
    itemsize = embeddings.element_size()
    encoder = sum(value.numel() for value in llm.hf.get_encoder().parameters()) if llm.is_encoder_decoder else 0
    encoder -= embeddings.numel() if encoder else 0
    writes, prompt = own - encoder, queries + text_tokens
    heads = getattr(described, "num_attention_heads", None) or described.num_heads
    width = getattr(described, "head_dim", None) or getattr(described, "d_kv", None) or llm.width // heads
    depth = getattr(described, "num_decoder_layers", None) or described.num_hidden_layers
    cache = 2 * depth * (getattr(described, "num_key_value_heads", None) or heads) * width * itemsize
    return {
        "prefill": 2.0 * prompt * (encoder or writes),
        "token": 2.0 * writes,
        "writer": writes * itemsize,
        # An encoder-decoder's beams share what the encoder gave, a decoder's beams each keep their prompt.
        "context": prompt * cache if llm.is_encoder_decoder else 0,
        "cache": cache,
        "prompt": 1 if llm.is_encoder_decoder else prompt,
        "vocabulary": llm.vocab_size,
    }
