"""The memory arithmetic of BLIP-2: what it counts by hand, and on small models of every case."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from small_blip2 import PIXELS
from torch import nn

from benchmarks.blip2_memory import largest_batch, step_memory
from openblip.models import layers
from openblip.models.blip2 import Blip2Config
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig, VisionConfig
from openblip.tasks.cost import GIB, StepCost, give_storage, without_values

OWN = VisionConfig(image_size=PIXELS, patch_size=8, width=64, depth=2, num_heads=2, final_norm=False)
FIRST = Blip2Config(
    vision=TowerConfig(source="own", own=OWN, dtype="bfloat16"),
    qformer=QFormerConfig(
        num_queries=4, width=64, depth=2, num_heads=2, inner_width=128, memory_width=64, vocab_size=128
    ),
)


def test_every_storage_is_counted_while_it_is_held() -> None:
    """Three layers of 256 by 256 over 512 rows: weights, outputs kept for the backward pass, gradients."""
    matrix, rows = 256 * 256 * 4, 512 * 256 * 4
    with torch.device("meta"):
        module = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(3)))
    with without_values() as meter:
        give_storage(module)
        assert meter.now == 3 * matrix
        inputs = torch.empty(512, 256)
        hidden = module(inputs)
        assert meter.now == 3 * matrix + 4 * rows
        loss = hidden.sum()
        del hidden
        loss.backward()
        assert meter.now == 6 * matrix + rows + 512  # the loss, rounded as the allocator rounds
        assert meter.peak >= 3 * matrix + 4 * rows
        kept = inputs[:, :10]
        del inputs
        assert meter.now == 6 * matrix + rows + 512  # a part holds the whole
        del kept
        assert meter.now == 6 * matrix + 512


def test_dropout_keeps_a_byte_for_each_element_as_on_a_gpu() -> None:
    with without_values() as meter:
        inputs = torch.empty(512, 256, requires_grad=True)
        for drop in (partial(layers.apply_dropout, p=0.1), nn.Dropout(0.1)):
            before = meter.now
            hidden = drop(inputs)
            assert meter.now - before == 512 * 256 * (4 + 1)
            del hidden
            assert meter.now == before
        hidden = layers.apply_dropout(inputs, 0.1, True)
        assert layers.apply_dropout(hidden, 0.1, False) is hidden
        assert layers.apply_dropout(hidden, 0.0, True) is hidden
        assert nn.Dropout(0.1).eval()(hidden) is hidden
        hidden.sum().backward()
        assert inputs.grad is not None
        assert inputs.grad.shape == inputs.shape


def test_tied_weights_stay_tied() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
        module[1].weight = module[0].weight
    with without_values() as meter:
        give_storage(module)
        assert module[1].weight is module[0].weight
        assert meter.now == 64 * 64 * 4


def opt() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    return transformers.OPTForCausalLM(transformers.OPTConfig(vocab_size=128, word_embed_proj_dim=64, **sizes))


def t5() -> Any:
    sizes: dict[str, Any] = {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 3, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=128, decoder_start_token_id=0, dropout_rate=0.0, **sizes)
    )


@pytest.mark.parametrize("kind", ["stage1", "opt", "t5"])
def test_what_a_step_takes(kind: str) -> None:
    config, make = FIRST, None
    if kind != "stage1":
        make = {"opt": opt, "t5": t5}[kind]
        config = replace(
            FIRST, qformer=replace(FIRST.qformer, vocab_size=None, writes=False), matches=False,
            language=LanguageConfig(source=kind, dtype="bfloat16"),
        )  # fmt: skip

    def memory(rows: int, **how: Any) -> StepCost:
        return step_memory(config, make, rows, tokens=8, **how)

    few, more, many = (memory(rows) for rows in (64, 128, 192))
    assert few.frozen == 2 * few.frozen_parameters > 0
    assert few.trained >= 12 * few.trained_parameters > 0  # a weight and two moments of four bytes
    assert few.peak > few.frozen + few.trained
    assert many.peak - more.peak == pytest.approx(more.peak - few.peak, rel=0.05)  # by equal steps
    assert memory(64, checkpointing=True).peak < few.peak
    cached = memory(64, from_features=True)
    assert cached.frozen < few.frozen
    assert cached.peak < few.peak


def test_what_is_recomputed_is_let_go_without_the_collector() -> None:
    deep = replace(FIRST, qformer=replace(FIRST.qformer, depth=12))
    gc.disable()
    try:
        plain, again = (step_memory(deep, None, 64, tokens=8, checkpointing=on) for on in (False, True))
    finally:
        gc.enable()
    kept = [cost.peak - cost.frozen - cost.trained for cost in (plain, again)]
    assert kept[1] < kept[0] / 3
    assert again.flops > plain.flops


def test_the_largest_batch() -> None:
    def memory(gib: float) -> StepCost:
        return StepCost(frozen=0, trained=0, peak=int(gib * GIB), trained_parameters=0, frozen_parameters=0)

    assert largest_batch(memory(10), memory(66), 24) == 32 + (24 - 2 - 10) * 4
    assert largest_batch(memory(40), memory(96), 10) == 0
