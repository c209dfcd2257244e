"""Where the time of a run goes, by kind of work, and how much arithmetic it does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile

from openblip.models.flops import FlopCounterMode

__all__ = ["KINDS", "counted", "kind_of", "profiled"]

Result = TypeVar("Result")

KINDS = {
    "matrix products of weights": r"aten::(mm|addmm|linear)$|mkldnn.*linear",
    "matrix products of attention": r"aten::(bmm|baddbmm)$|scaled_dot_product",
    "softmax": r"softmax",
    "patches": r"convolution",
    "optimizer": r"adamw?_",
    "momentum copies": r"lerp",
    "layer norm": r"layer_norm",
    "GELU": r"gelu",
    "dropout": r"bernoulli|dropout",
    "embedding": r"embedding|aten::(index|index_put_|_index_put_impl_)$",
    "copies and casts": r"aten::(copy_|cat|clone|index_select|scatter_add_|contiguous|stack)$",
    "sums, biases, residuals": r"aten::(add_?|sum|mul_?|div_?)$",
    "new zeros": r"aten::(fill_|zero_)$",
}
"""kind of work -> pattern of the names of torch's operations, the first that fits counts; the rest is "other" """


def kind_of(operation: str) -> str:
    """The kind of work that one of torch's operations does."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, operation)), "other")


def profiled(run: Callable[[], None]) -> dict[str, float]:
    """Run once: seconds spent in each kind of work."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return {kind: round(value, 3) for kind, value in seconds.items()}


def counted(run: Callable[[], Result]) -> tuple[Result, float]:
    """What `run` returns, and the arithmetic of its matrix products and convolutions in TFLOP."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, round(counter.get_total_flops() / 1e12, 4)
