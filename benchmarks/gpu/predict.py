"""What a run on a GPU should find, computed on any machine: arithmetic counted, memory of a step without values.

    python -m benchmarks gpu --predict [--store]

A prediction is for a card whose memory holds it: seconds at a share of the card's dense bfloat16 rate that lasts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.blip2_memory import GIB, give_storage, memory_of
from benchmarks.gpu.cards import H100
from benchmarks.gpu.steps import WORKS
from benchmarks.tables import RESULTS, text_table
from openblip.core.files import write_json

__all__ = ["STORED", "main", "predicted", "table"]

STORED = RESULTS / "gpu-predicted.json"
SHARE = 0.4
"""of the card's rate that a training step is predicted to reach (`capfilt_plan` has the same)"""
STEPS = (("blip", (64, 128, 256)), ("stage1", (128,)), ("stage2", (128,)))


def predicted(case: str) -> dict[str, Any] | None:
    """The stored prediction of a case; None where there is none."""
    rows = json.loads(STORED.read_text(encoding="utf-8"))["rows"]
    found: dict[str, Any] | None = next((row for row in rows if row["case"] == case), None)
    return found


def compute() -> dict[str, Any]:
    """All predictions."""
    rows = [predict_step(name, batch) for name, batches in STEPS for batch in batches]
    return {"name": "gpu-predicted", "card": H100.name, "share": SHARE, "rows": rows}


def predict_step(name: str, batch: int, *, small: bool = False) -> dict[str, Any]:
    """One training step of an objective."""
    work = WORKS[name](small)
    step = work.make("meta").train()
    tflop = flops_of(step, lambda: work.batch(batch)) / 1e12
    memory = memory_of(work.make("meta").train(), lambda: work.batch(batch))
    return {
        "case": f"{name}, batch {batch}",
        "images": batch,
        "tflop": round(tflop, 3),
        "images_per_s": round(batch / (tflop / H100.tflops / SHARE)),
        "peak_gib": round(memory.peak / GIB, 2),
        "trained_parameters": memory.trained_parameters,
        "frozen_parameters": memory.frozen_parameters,
    }


def flops_of(step: nn.Module, make_batch: Callable[[], Any]) -> int:
    """Floating-point operations of a step's products, forward and backward, nothing recomputed; on "meta"."""
    # Attention as plain products, since what a fused kernel recomputes is no arithmetic of the model.
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        give_storage(step)
        batch = make_batch()
        with FlopCounterMode(display=False) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
            loss = step(batch)["loss"]
            loss.backward()
    return int(counter.get_total_flops())


def table(result: dict[str, Any]) -> list[str]:
    """The predictions as lines of docs/performance.md."""
    head = ("step", "TFLOP", "peak memory", f"images/s at {SHARE:.0%} of an {result['card']}")
    rows = [
        (
            row["case"],
            f"{row['tflop']:.1f}",
            f"{row['peak_gib']:.1f} GiB",
            f"{row['images_per_s']:,}",
        )
        for row in result["rows"]
    ]
    return text_table(head, rows)


def main(*, store: bool) -> int:
    """Compute, print, and store where that is asked for."""
    result = compute()
    if store:
        write_json(STORED, result)
    print("\n".join(table(result)))
    return 0
