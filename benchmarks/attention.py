"""Attention fused (torch's `scaled_dot_product_attention`) or written out as matrix products, on a CPU.

Ours is `openblip.models.layers.attend`, which takes either (`core.compute.uses_fused_attention`); the peer is
the same function taking the other one, so a ratio above 1 says that the choice is right. Sizes are those of a
training step of ViT-B, batch 8; text attends to images with dropout while it is timed, as in training.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.harness import Subject, compare, dtypes_to_measure, result_of
from openblip.core.memory import keep_freed_memory
from openblip.models import layers

HEADS, SIZE, IMAGE_TOKENS = 12, 64, 197
SHAPES = {"image to itself": (8, IMAGE_TOKENS, 0.0), "text to image": (24, 12, 0.1)}
"""rows, queries in a row, dropout; always over the tokens of an image"""
CASES = {
    f"{name}, {'forward and backward' if training else 'forward'}": (name, training)
    for name in SHAPES
    for training in (True, False)
}


def run(quick: bool) -> dict[str, Any]:
    """Measure; `quick` takes float32 and few repeats."""
    dtypes = dtypes_to_measure(("float32", "bfloat16"), "float32" if quick else None)
    device, rows = torch.device("cpu"), []
    for dtype in dtypes:
        for case, (_, training) in CASES.items():
            tolerance = 1e-4 if dtype == "float32" else 0.05
            row = compare(
                "benchmarks.attention",
                case,
                dtype=dtype,
                quick=quick,
                repeats=2 if quick else 9,
                tolerance=tolerance,
            )
            with torch.set_grad_enabled(training):
                written = not layers.uses_fused_attention(device, getattr(torch, dtype))
            rows.append({**row, "ours": "written out" if written else "fused"})
    return result_of("attention", rows)


def build(case: str, side: str, dtype: str, quick: bool) -> Subject:
    """One side of a case."""
    if side == "peer":
        chosen = layers.uses_fused_attention
        layers.uses_fused_attention = lambda device, dtype: not chosen(device, dtype)
    keep_freed_memory()
    name, training = CASES[case]
    return Attention(*SHAPES[name], dtype=getattr(torch, dtype), training=training)


class Attention:
    """Queries, keys and values; a run is one call, with its backward pass in training."""

    def __init__(self, rows: int, queries: int, dropout: float, *, dtype: torch.dtype, training: bool) -> None:
        torch.manual_seed(0)
        self.training, self.dropout = training, dropout if training else 0.0
        self.query, self.key, self.value = (
            torch.randn(rows, length, HEADS, SIZE).to(dtype).requires_grad_(training).transpose(1, 2)
            for length in (queries, IMAGE_TOKENS, IMAGE_TOKENS)
        )
        for tensor in (self.query, self.key, self.value):
            if training:
                tensor.retain_grad()
        self.above = torch.randn(self.query.shape).to(dtype)

    def outputs(self) -> dict[str, float]:
        """Lengths of the output and of the gradients, without dropout."""
        found = {"output": self._call(0.0).detach()}
        if self.training:
            found |= {name: getattr(self, name).grad for name in ("query", "key", "value")}
        return {name: float(tensor.float().norm()) for name, tensor in found.items()}

    def run(self) -> None:
        """One call."""
        self._call(self.dropout)

    def _call(self, dropout: float) -> torch.Tensor:
        with torch.set_grad_enabled(self.training):
            output = layers.attend(self.query, self.key, self.value, dropout=dropout)
        if self.training:
            for tensor in (self.query, self.key, self.value):
                tensor.grad = None
            torch.autograd.backward(output, self.above, inputs=[self.query, self.key, self.value])
        return output
