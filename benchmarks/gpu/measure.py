"""Time, memory and kernels of one function on a device."""

from __future__ import annotations

import gc
import re
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import spread
from openblip.core.gpus import gpu_of_driver, utilization

__all__ = ["attention_kernels", "card", "count_waits", "forget", "measured"]

WARMUP, REPEATS, FEWEST = 3, 20, 3
GIB = 2**30
ATTENTION = re.compile(r"flash|fmha|attention|sdpa|cudnn.*sdp", re.I)


def card(device: torch.device) -> str | None:
    """The GPU's name, None on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def forget(device: torch.device) -> None:
    """Give back what nobody holds any more: modules that refer to each other wait for the collector."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured(
    run: Callable[[], Any],
    device: torch.device,
    *,
    images: int,
    seconds: float,
    tflop: float | None = None,
    warmup: int = WARMUP,
    pretend: bool = False,
) -> dict[str, Any]:
    """Run repeatedly: median time, spread, images/s, peak memory, and MFU where the arithmetic is known.

    Args:
        images: of one run.
        seconds: that the repeats may take in all; there are at least `FEWEST`.
        tflop: arithmetic of one run.
        warmup: runs before those that are timed.
        pretend: time one run.
    """
    for _ in range(1 if pretend else warmup):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    times = _times(run, 1, device)
    repeats = 1 if pretend else max(FEWEST, min(REPEATS, int(seconds / times[0])))
    if not pretend:
        times = _times(run, repeats, device)
    median = statistics.median(times)
    found: dict[str, Any] = {
        "seconds": round(median, 6),
        "spread": round(spread(times), 4),
        "repeats": repeats,
        "images_per_s": round(images / median, 2),
    }
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 3)
    if tflop is not None:
        found["tflop"] = round(tflop, 4)
        mfu = utilization(tflop, median, gpu_of_driver(card(device)))
        found |= {} if mfu is None else {"mfu": round(mfu, 4)}
    return found


def _times(run: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each run; on a GPU by events, so that the host runs ahead as it does in training."""
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return times
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(last) / 1000 for first, last in pairwise(events)]


def attention_kernels(run: Callable[[], Any], device: torch.device, *, most: int = 12) -> dict[str, Any]:
    """Kernels of one run by name: milliseconds of those that compute attention, and of the `most` longest."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        took = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if took > 0:
            spent[event.key[:120]] = spent.get(event.key[:120], 0.0) + took / 1000
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    attention = {name: round(value, 3) for name, value in ordered if ATTENTION.search(name)}
    return {
        "attention_ms": attention,
        "longest_ms": {name: round(value, 3) for name, value in ordered[:most]},
        "all_ms": round(sum(spent.values()), 3),
    }


def count_waits(run: Callable[[], Any]) -> dict[str, int]:
    """How often the host waits for the GPU in one run, by torch's words for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    counts: dict[str, int] = {}
    for warning in caught:
        if "synchron" in str(warning.message):
            place = f"{warning.filename.rpartition('/')[2]}:{warning.lineno}"
            counts[place] = counts.get(place, 0) + 1
    return counts
