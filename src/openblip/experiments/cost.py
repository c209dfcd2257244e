"""What a training step costs: time, floating-point operations, memory; each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from openblip.core.memory import peak_mb
from openblip.core.runtime import seed_everything
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.experiments.results import Numbers
from openblip.objectives.pretraining import BlipPretraining
from openblip.tasks.blip2.build import build
from openblip.tasks.blip2.config import Blip2RunConfig
from openblip.tasks.blip2.features import FeatureCache, fingerprint_of
from openblip.tasks.blip2.run import make_step
from openblip.tasks.blip2.step import Blip2Step
from openblip.tasks.build import build_blip
from openblip.tasks.run_config import RunConfig
from openblip.tasks.step import BlipStep, make_prepare
from openblip.training.optim import make_optimizer

__all__ = ["step_cost"]

Made = tuple[BlipStep | Blip2Step, Any]
"""a step and its batch"""


def step_cost(config: RunConfig | Blip2RunConfig, out: Path, *, repeats: int = 5) -> Numbers:
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


def _measure(config: RunConfig | Blip2RunConfig, out: Path, repeats: int, threads: int) -> Numbers:
    torch.set_num_threads(threads)
    seed_everything(0)
    before = peak_mb()
    step, batch = _blip(config, out) if isinstance(config, RunConfig) else _blip2(config, out)
    step.train()
    optimizer = make_optimizer(step, config.train)
    seconds = []
    for _ in range(repeats + 1):  # the first one makes the optimiser's moments and fills caches
        began = time.perf_counter()
        step(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    peak = peak_mb() - before
    # Attention as plain products, since the fused kernel of a processor is not counted.
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


def _blip(config: RunConfig, out: Path) -> Made:
    sources = [open_source(source) for source in config.sources]
    model, tokenizer = build_blip(config, sources, out)
    objective = BlipPretraining(model, config.objective, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id)
    prepare = make_prepare(tokenizer, max_length=config.max_length)
    return BlipStep(objective), _batch(config, model.config.vision.image_size, prepare)


def _blip2(config: Blip2RunConfig, out: Path) -> Made:
    stored = build(config, [open_source(source) for source in config.sources], out)
    cache = FeatureCache.open(config.features, fingerprint_of(stored.model.vision)) if config.features else None
    step, prepare = make_step(config, stored, cache)
    return step, _batch(config, stored.model.vision.pixels, prepare, cache)


def _batch(config: Any, pixels: Any, prepare: Callable[[Any], Any], cache: FeatureCache | None = None) -> Any:
    sources = [open_source(source) for source in config.sources]
    loader = Loader(
        sources if cache is None else [cache.source(source) for source in sources],
        evaluation_transform(pixels),
        config.batch_size,
        max_words=config.max_words,
    )
    batch = prepare(next(iter(loader)))
    loader.close()
    return batch
