"""What a run will take on a card: parameters, arithmetic, memory and hours, before anything is read or begun.

made = plan(config, GPUS["h100"], gpus=8, samples=566_747)
made.hours, made.memory_gib, made.fits
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from openblip.core.errors import UserError
from openblip.core.gpus import ARITHMETIC_SHARE, Gpu
from openblip.tasks.config import RunConfig
from openblip.tasks.cost import GIB, RESERVE, predicted_cost
from openblip.tasks.sketch import sketch

__all__ = ["Plan", "largest_batch", "plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on so many cards of one kind."""

    gpu: Gpu
    gpus: int
    mfu: float
    """share of the card's arithmetic that is assumed to last"""
    batch: int
    """samples of a micro-batch of one GPU"""
    accumulation: int
    text_tokens: int
    trained_parameters: int
    frozen_parameters: int
    """of frozen parts of the model"""
    momentum_parameters: int
    """of the momentum copies"""
    step_tflop: float
    """of a step of the optimizer on one GPU"""
    weights_gib: float
    """weights, the optimizer's moments and queues"""
    passing_gib: float
    """gradients, and what the forward pass keeps for the backward pass, at their most"""
    buckets_gib: float
    """what several processes add"""
    steps: int | None
    """of the run; None where the number of samples is not known"""

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.batch * self.accumulation * self.gpus

    @property
    def memory_gib(self) -> float:
        """Of one GPU, with what is set aside for the CUDA context and fragments."""
        return self.weights_gib + self.passing_gib + self.buckets_gib + RESERVE

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.memory_gib <= self.gpu.gib

    @property
    def step_seconds(self) -> float:
        """At the assumed share of the card's arithmetic, nothing waited for."""
        return self.step_tflop / self.gpu.tflops / self.mfu

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs."""
        return self.global_batch / self.step_seconds

    @property
    def hours(self) -> float | None:
        """Of the whole run, without evaluations."""
        return None if self.steps is None else self.steps * self.step_seconds / 3600


def plan(config: RunConfig, gpu: Gpu, *, gpus: int = 1, mfu: float = ARITHMETIC_SHARE, samples: int = 0) -> Plan:
    """Predict a run; neither data nor weights are read.

    Args:
        gpus: processes with a GPU each.
        mfu: share of the card's arithmetic, 0 to 1.
        samples: of an epoch; 0 is not known, and then only a run of so many steps has hours.

    Raises:
        UserError: as of `sketch`, or a number makes no sense.
    """
    if gpus < 1:
        raise UserError(f"--gpus must be at least 1, not {gpus}")
    if samples < 0:
        raise UserError(f"--samples cannot be negative, and is {samples}")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu must be above 0 and at most 1, not {mfu:g}")
    if config.train.sharding != "none":
        raise UserError(
            "what sharding saves is not predicted; leave train.sharding out for the memory of whole copies"
        )
    step, batch = sketch(config)
    whole = {id(value) for value in step.model.parameters()}
    momentum = sum(value.numel() for value in step.parameters() if id(value) not in whole)
    cost = predicted_cost(step, batch)
    train = config.train
    # DDP's buckets are as large as the gradients.
    buckets = 4 * cost.trained_parameters if gpus > 1 else 0
    each = config.batch_size * train.gradient_accumulation * gpus
    steps = train.max_steps or (train.epochs * math.ceil(samples / each) if samples else None)
    tflop = (cost.flops + cost.attention_flops) * train.gradient_accumulation / 1e12
    return Plan(
        gpu=gpu,
        gpus=gpus,
        mfu=mfu,
        batch=config.batch_size,
        accumulation=train.gradient_accumulation,
        text_tokens=config.max_length,
        trained_parameters=cost.trained_parameters,
        frozen_parameters=cost.frozen_parameters - momentum,
        momentum_parameters=momentum,
        step_tflop=tflop,
        weights_gib=(cost.frozen + cost.trained) / GIB,
        passing_gib=(cost.peak - cost.frozen - cost.trained) / GIB,
        buckets_gib=buckets / GIB,
        steps=steps,
    )


def largest_batch(config: RunConfig, made: Plan) -> int:
    """The largest batch of one GPU that fits its memory, 0 if none does; memory grows by equal steps with it."""
    few = max(1, made.batch // 2)
    other = plan(replace(config, batch_size=few if few != made.batch else 2), made.gpu, gpus=made.gpus)
    each = (made.passing_gib - other.passing_gib) / (made.batch - other.batch)
    return max(0, int(made.batch + (made.gpu.gib - made.memory_gib) / each))
