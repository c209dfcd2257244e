"""What a training step costs: time, floating-point operations, memory; each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from openblip.core.compute import choose_dtype
from openblip.core.memory import keep_freed_memory, peak_mb
from openblip.core.runtime import seed_everything
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.experiments.results import Metrics
from openblip.models.flops import FlopCounterMode
from openblip.tasks.config import RunConfig
from openblip.tasks.feature_cache import DrawCrop
from openblip.tasks.step import TrainingStep
from openblip.tasks.training import set_up
from openblip.training.optim import make_optimizer

__all__ = ["step_cost"]


def step_cost(config: RunConfig, out: Path, *, repeats: int = 5) -> Metrics:
    """Cost of one optimiser step of a run on one batch of its own data.

    Args:
        out: a folder where a tokenizer that is learned is kept.

    Returns:
        "trained_parameters", "parameters", "seconds" (the median of the repeats), "gflops" of forward and backward,
        and "peak_mb", by how much the process grew from before the model was built.
    """
    # Nothing of this process counts there, and the libraries are imported once for all measurements.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=server) as pool:
        return pool.submit(_measure, config, out, repeats, torch.get_num_threads()).result()


def _measure(config: RunConfig, out: Path, repeats: int, threads: int) -> Metrics:
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the command line does
    seed_everything(0)
    before = peak_mb()
    step, batch = _set_up(config, out)
    step.train()
    optimizer = make_optimizer(step, config.train)
    dtype = choose_dtype(config.train.precision, "cpu")
    seconds = []
    for _ in range(repeats + 1):  # the first one makes the optimiser's moments and fills caches
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):  # as in training
            loss = step(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    peak = peak_mb() - before
    # Attention as plain products, since the fused kernel of a CPU is not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(batch)["loss"].backward()
    parameters = list(step.objective.model.parameters())  # BLIP's momentum copies are not of the model
    return {
        "trained_parameters": float(sum(p.numel() for p in parameters if p.requires_grad)),
        "parameters": float(sum(p.numel() for p in parameters)),
        "seconds": statistics.median(seconds[1:]),
        "gflops": counter.get_total_flops() / 1e9,
        "peak_mb": peak,
    }


def _set_up(config: RunConfig, out: Path) -> tuple[TrainingStep[Any], Any]:
    """The step of a run and its first batch, images resized whole."""
    adapter, sources, training = set_up(config, out)
    transform = DrawCrop() if config.features else evaluation_transform(adapter.image_size)
    loader = Loader(sources, transform, config.batch_size, max_words=config.max_words)
    batch = training.prepare(next(iter(loader)))
    loader.close()
    return training.step, batch
