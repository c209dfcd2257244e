"""What a training step of BLIP-2 takes on a GPU, computed on any machine: no weight is allocated, nothing is timed.

    python -m benchmarks.blip2_memory [--json] [--store]
    python -m benchmarks.blip2_memory --vision timm:NAME --language FOLDER-OR-HUB-NAME --tokens 32

The floating-point operations of a step's matrix products are counted too, forward and backward; attention's own,
some 3%, are not. From them docs/blip2.md estimates how long a run takes.

A step of the real sizes runs on tensors without values (torch's fake tensors), and every storage that it holds is
counted from its birth to its end: weights, the optimiser's moments, gradients, what autograd keeps, what an
operation needs in passing. Two things are put in a GPU's place: attention keeps its inputs, its output and one
number a row, as fused kernels do, and LayerNorm under autocast gives float32, as CUDA has it. Not in it:
the CUDA context and what the allocator loses to fragments, for which `RESERVE` is set aside, and what several
processes add (DDP's buckets, as much as the gradients).
"""

from __future__ import annotations

import argparse
import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tables import text_table
from openblip.checkpoints.blip2_parts import as_tower
from openblip.core.files import write_json
from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.language import FrozenLanguage, LanguageConfig
from openblip.models.qformer import QFormerConfig
from openblip.models.tower import FrozenTower, TowerConfig, make_tower
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2, Stage1Config
from openblip.recipes.blip2 import VISION_TODAY
from openblip.tasks.captioning import LanguagePairBatch, Stage2Step
from openblip.tasks.pairs import Stage1Step
from openblip.tasks.step import PairBatch

GIB = 2**30
CARDS = (24, 40, 80)
RESERVE = 2.0
"""GiB left to the CUDA context and to fragments"""
SIZES = (32, 256)
"""batches that are computed"""
TOKENS = 32
"""of a caption, the longest that the recipes train on"""
VISION = TowerConfig(dtype="bfloat16")
"""the paper's tower"""
STORED = Path(__file__).parent / "results" / "blip2-memory.json"

Make = Callable[[], Any]
"""makes a language model of transformers without values"""


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is on and that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = math.ceil(storage.nbytes() / 512) * 512  # as torch's allocator rounds
            self.now += self._held[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._held.pop(key)


class _Fused(torch.autograd.Function):
    """Attention by what a fused kernel keeps for its backward: inputs, output, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    return _Fused.apply(query, key, value, attn_mask)


def _layer_norm(inputs: Tensor, *args: Any, normal: Any = F.layer_norm, **kwargs: Any) -> Tensor:
    return normal(inputs.float() if torch.is_autocast_enabled("cpu") else inputs, *args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a training step on one process."""

    frozen: int
    """weights of vision tower and language model"""
    trained: int
    """weights in float32 and AdamW's two moments; gradients count as activations, since they come in their place"""
    peak: int
    """most that is held at once"""
    trained_parameters: int
    frozen_parameters: int
    flops: int = 0
    """of the step's matrix products"""


@contextmanager
def without_values() -> Iterator[Meter]:
    """Fake tensors under a meter, with what CUDA does in the place of what a CPU does."""
    meter = Meter()
    with (
        mock.patch("openblip.models.layers.uses_fused_attention", return_value=True),
        mock.patch("openblip.models.vision.uses_fused_attention", return_value=True),
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
        mock.patch.object(F, "layer_norm", _layer_norm),
        FakeTensorMode(),
        meter,
    ):
        yield meter


def step_memory(
    config: Blip2Config,
    language: Make | None,
    batch_size: int,
    *,
    tokens: int = TOKENS,
    from_features: bool = False,
    checkpointing: bool = False,
) -> Memory:
    """Memory of one step under autocast in bfloat16, AdamW, stage 2 where there is a language model.

    Args:
        config: with the frozen parts' dtypes.
        language: makes the language model, on whatever device is the default.
        from_features: images are features of the frozen tower (`openblip cache-features`), and it is not there.
        checkpointing: the blocks of Q-Former and language model are computed again in the backward pass.
    """
    with torch.device("meta"):
        tower = make_tower(config.vision, pretrained=False)
        llm = None if language is None else FrozenLanguage(language(), config.language or LanguageConfig())
        model = Blip2(config, tower, llm).train()
    objective = Blip2Stage1(model, Stage1Config(), dec_id=30522) if llm is None else Blip2Stage2(model, eos_id=1)
    step: nn.Module = Stage1Step(objective) if llm is None else Stage2Step(objective)
    model.gradient_checkpointing_enable(checkpointing)

    def batch() -> PairBatch:
        features = None
        if from_features:
            features = tower(torch.zeros(1, 3, *tower.pixels)).expand(batch_size, -1, -1).contiguous()
            tower.encoder = nn.Identity()
        return _batch(tower, llm, batch_size, tokens, features)

    return memory_of(step, batch)


def memory_of(step: nn.Module, make_batch: Callable[[], Any]) -> Memory:
    """Memory of one step under autocast in bfloat16 with AdamW.

    Args:
        step: a step of the training loop on the device "meta".
        make_batch: called where tensors have no values.
    """
    with without_values() as meter:
        give_storage(step)
        batch = make_batch()
        trained = [value for value in step.parameters() if value.requires_grad]
        fixed = [value for value in step.parameters() if not value.requires_grad]
        frozen = sum(value.numel() * value.element_size() for value in fixed)
        moments = [torch.zeros_like(value) for value in trained for _ in range(2)]
        held = meter.peak = meter.now
        with FlopCounterMode(display=False) as counter:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = step(batch)
            losses["loss"].backward()
        del moments
    return Memory(
        frozen=frozen,
        trained=held - frozen,
        peak=meter.peak,
        trained_parameters=sum(value.numel() for value in trained),
        frozen_parameters=sum(value.numel() for value in fixed),
        flops=counter.get_total_flops(),
    )


def give_storage(module: nn.Module) -> None:
    """Tensors without values, but with a storage, in place of those that have neither."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in made:  # tied ones stay tied
                    new = torch.empty(value.shape, dtype=value.dtype)
                    trained = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(new, requires_grad=value.requires_grad) if trained else new
                table[name] = made[id(value)]  # type: ignore[assignment]


def _batch(
    tower: FrozenTower, llm: FrozenLanguage | None, rows: int, tokens: int, features: Tensor | None
) -> PairBatch:
    """A batch of texts of equally many tokens; an encoder-decoder's are split in the middle."""
    images = torch.zeros(rows, 3, *tower.pixels, dtype=torch.uint8) if features is None else features
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    mask = torch.ones(rows, tokens, dtype=torch.bool)
    image_ids = torch.zeros(rows, dtype=torch.int64)
    if llm is None:
        return PairBatch(images, TokenBatch(ids, mask), image_ids)
    if not llm.is_encoder_decoder:
        return LanguagePairBatch(images, _all_scored(ids, mask), image_ids)
    half = slice(0, tokens // 2)
    part = _all_scored(ids[:, half], mask[:, half])
    return LanguagePairBatch(images, part, image_ids, prefix=part)


def _all_scored(ids: Tensor, mask: Tensor) -> LanguageBatch:
    """Their places are named, since tensors without values cannot be searched."""
    return LanguageBatch(ids, mask, mask, mask, torch.arange(ids.numel()))


def largest_batch(few: Memory, many: Memory, card: float) -> int:
    """The largest batch that fits a card of so many GiB, 0 if none does; peaks grow by equal steps with the batch.

    Args:
        few: memory with `SIZES[0]` rows; `many` with `SIZES[1]`.
    """
    each = (many.peak - few.peak) / (SIZES[1] - SIZES[0])
    return max(0, int(SIZES[0] + ((card - RESERVE) * GIB - few.peak) / each))


def opt_2_7b() -> Any:
    """OPT-2.7B in its published sizes."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32}
    sizes |= {"num_attention_heads": 32, "attn_implementation": "sdpa"}
    return transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=50272, word_embed_proj_dim=2560, **sizes))


def flan_t5_xl() -> Any:
    """FlanT5-XL in its published sizes."""
    import transformers

    sizes: dict[str, Any] = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32}
    sizes |= {"vocab_size": 32128, "dropout_rate": 0.0, "attn_implementation": "sdpa"}
    sizes |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
    model: Any = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    # Tied until weights are read that differ, as FlanT5's do.
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


def qwen3_1_7b() -> Any:
    """Qwen3-1.7B in its published sizes."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    sizes |= {"tie_word_embeddings": True, "attn_implementation": "sdpa"}
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))


def gemma3_1b() -> Any:
    """Gemma 3 1B in its published sizes."""
    import transformers

    sizes: dict[str, Any] = {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144}
    sizes |= {"sliding_window": 512, "tie_word_embeddings": True, "attn_implementation": "sdpa"}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))


PAPER: dict[str, Make] = {"OPT-2.7B": opt_2_7b, "FlanT5-XL": flan_t5_xl}
TODAY: dict[str, Make] = {"Qwen3-1.7B": qwen3_1_7b, "Gemma 3 1B": gemma3_1b}


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    config: Blip2Config
    language: Make | None = None
    from_features: bool = False
    checkpointing: bool = False

    def memory(self, batch_size: int, tokens: int = TOKENS) -> Memory:
        """`step_memory` of it."""
        how = {"from_features": self.from_features, "checkpointing": self.checkpointing}
        return step_memory(self.config, self.language, batch_size, tokens=tokens, **how)


def cases(vision: TowerConfig, languages: dict[str, Make]) -> list[Case]:
    """Stage 1, and stage 2 before each language model: plainly, computing blocks again, and from features."""
    with torch.device("meta"):
        width = make_tower(vision, pretrained=False).width
    first = Blip2Config(vision=vision, qformer=QFormerConfig(memory_width=width))
    silent = replace(first.qformer, vocab_size=None, writes=False)
    made = [
        Case("stage 1", first),
        Case("stage 1, recomputing", first, checkpointing=True),
        Case("stage 1, from features", first, from_features=True),
    ]
    for name, language in languages.items():
        config = LanguageConfig(source=name, dtype="bfloat16")
        second = replace(first, qformer=silent, matches=False, language=config)
        made += [
            Case(f"stage 2, {name}", second, language),
            Case(f"stage 2, {name}, recomputing", second, language, checkpointing=True),
            Case(f"stage 2, {name}, from features", second, language, from_features=True),
        ]
    return made


def run(vision: TowerConfig, languages: dict[str, Make], tokens: int = TOKENS) -> dict[str, Any]:
    """The table as plain data."""
    return {
        "name": "blip2-memory",
        "tokens": tokens,
        "reserve_gib": RESERVE,
        "rows": _rows(vision, languages, tokens),
    }


def _rows(vision: TowerConfig, languages: dict[str, Make], tokens: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for case in cases(vision, languages):
        few, many = (case.memory(size, tokens) for size in SIZES)
        each = (many.peak - few.peak) / (SIZES[1] - SIZES[0])
        rows.append(
            {
                "case": case.name,
                "trained_parameters": few.trained_parameters,
                "frozen_parameters": few.frozen_parameters,
                "frozen_gib": round(few.frozen / GIB, 2),
                "trained_gib": round(few.trained / GIB, 2),
                "each_mib": round(each / 2**20, 1),
                "each_tflop": round((many.flops - few.flops) / (SIZES[1] - SIZES[0]) / 1e12, 3),
                "peak_gib": {
                    str(size): round(found.peak / GIB, 2) for size, found in zip(SIZES, (few, many), strict=True)
                },
                "largest_batch": {str(card): largest_batch(few, many, card) for card in CARDS},
            }
        )
    return rows


def table(result: dict[str, Any], rows: str = "rows") -> list[str]:
    """The result's `rows`, or those of "today", as a table for docs/blip2.md, by lines."""
    head = ("", "trained", "frozen", "weights and moments", "each image", *(f"{card} GB" for card in CARDS))
    lines = [
        (
            row["case"],
            f"{row['trained_parameters'] / 1e6:.1f}M",
            f"{row['frozen_parameters'] / 1e6:,.0f}M",
            f"{row['frozen_gib'] + row['trained_gib']:.1f} GiB",
            f"{row['each_mib']:.0f} MiB",
            *(str(row["largest_batch"][str(card)] or "none") for card in CARDS),
        )
        for row in result[rows]
    ]
    return text_table(head, lines, left=len(head))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blip2_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--vision", default=TowerConfig().source, help="the frozen tower, timm:NAME[@N]")
    parser.add_argument("--language", help="a transformers folder or hub name; only its config.json is read")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a text")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--store", action="store_true", help="keep it in benchmarks/results")
    options = parser.parse_args()
    languages = {options.language: lambda: _described(options.language)} if options.language else PAPER
    result = run(as_tower(options.vision, VISION), languages, options.tokens)
    if options.store:
        result["today"] = _rows(as_tower(VISION_TODAY, VISION), TODAY, options.tokens)
        write_json(STORED, result)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print("\n".join(table(result)))


def _described(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(name)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config)


if __name__ == "__main__":
    main()
