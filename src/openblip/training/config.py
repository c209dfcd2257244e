"""How a model is trained: every number and switch of the loop, checked when it is written down.

`TrainConfig` knows nothing of models or data. What it leaves open (the length of an epoch) comes from the
loader, so a configuration says either epochs or steps and both readings are defined here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from openblip.core.errors import UserError

__all__ = ["FIT_AFTER", "MAY_CHANGE", "TrainConfig", "within"]

FIT_AFTER = 20
"""steps after which `fit_minutes` first measures the speed: enough that the slower first ones do not decide"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. The defaults are BLIP's pre-training for a ViT-B."""

    epochs: int = 20
    """passes over the loader; not read when `max_steps` is set"""
    max_steps: int | None = None
    """optimiser steps, instead of epochs"""
    max_minutes: float | None = None
    """stop cleanly (log, evaluate, save, export) once this much time is spent, all sessions together"""
    fit_minutes: float | None = None
    """minutes that training is to take, evaluations included: the number of steps is set from the measured speed,
    first after `FIT_AFTER` steps and again after each evaluation, and kept in checkpoints, so that the schedule
    ends when the time does; `max_steps` is the estimate until then"""

    learning_rate: float = 3e-4
    """the peak"""
    min_learning_rate: float = 1e-6
    """the schedule never goes below it"""
    warmup_steps: int = 3000
    """linear rise to the peak over this many steps; the schedule takes over where it is lower"""
    warmup_learning_rate: float = 1e-6
    """where the rise begins"""
    schedule: Literal["epoch-decay", "cosine", "cosine-epoch", "linear", "constant"] = "epoch-decay"
    """"epoch-decay" multiplies by `decay_rate` at each epoch (BLIP's pre-training), "cosine-epoch" follows a cosine
    in whole epochs (BLIP's fine-tuning), "cosine" one in steps (BLIP-2), "linear" goes down in steps"""
    decay_rate: float = 0.9
    """of "epoch-decay" """

    optimizer: Literal["adamw", "muon"] = "adamw"
    """"adamw" as the papers'; "muon" (Jordan et al. 2024) orthogonalises the updates of hidden matrices and leaves
    the rest to AdamW: small models from scratch learn in about two thirds of the steps (docs/training.md)"""
    weight_decay: float = 0.05
    """decoupled (AdamW)"""
    weight_decay_on: Literal["all", "matrices"] = "all"
    """"all" as BLIP's reference does; "matrices" spares biases, norms and other vectors, as BLIP-2's"""
    betas: tuple[float, float] = (0.9, 0.999)
    """of AdamW; BLIP-2 takes (0.9, 0.98)"""
    eps: float = 1e-8
    """of AdamW"""
    layer_decay: float = 1.0
    """a layer d layers below the top learns at `layer_decay ** d` of the rate; 1 is off"""
    clip_norm: float | None = None
    """the whole gradient is scaled down to this length when it is longer"""
    gradient_accumulation: int = 1
    """micro-batches that make one step of the optimiser; the last step of an epoch may have fewer"""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """in which the forward computes (weights stay float32); "auto" is bfloat16 where it is fast"""
    device: Literal["auto", "cpu"] = "auto"
    """"cpu" leaves a GPU alone"""
    compile: bool = False
    """torch.compile the whole step; slow to start, faster to run on GPUs"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time"""
    sharding: Literal["none", "fsdp2"] = "none"
    """over several processes: "none" keeps whole copies (DDP), "fsdp2" splits weights, gradients and moments"""
    sharding_layers: tuple[str, ...] = ()
    """class names of modules that FSDP2 gathers one at a time; none gathers the model at once"""
    find_unused_parameters: bool = False
    """DDP: some trained parameters take no part in some steps"""
    static_graph: bool = False
    """DDP: every step uses the same parameters in the same order; lets shared weights be recomputed"""

    seed: int = 0
    """of dropout, negatives and everything else drawn in a step; each process derives its own"""

    log_every: int = 10
    """steps between records of the losses"""
    evaluate_every_epochs: int = 1
    """epochs between evaluations; 0 leaves them to `evaluate_every_steps` and the end"""
    evaluate_every_steps: int = 0
    """steps between evaluations; 0 is off"""
    evaluate_first: bool = False
    """evaluate before the first step too"""
    checkpoint_every: int = 1000
    """steps between checkpoints; 0 is off (one is always written at the end)"""
    checkpoint_minutes: float = 30.0
    """minutes between checkpoints; 0 is off"""
    keep_checkpoints: int = 2
    """newest checkpoints that stay; the best one stays beside them"""
    monitor: str | None = None
    """name of the evaluation's number that decides which model is the best"""
    monitor_mode: Literal["max", "min"] = "max"
    """whether the largest or the smallest is the best"""
    trackers: tuple[str, ...] = ("auto",)
    """"auto" is TensorBoard when it is installed; or names: tensorboard, wandb, mlflow, comet_ml, aim, clearml,
    dvclive, swanlab, trackio; () is none"""

    def __post_init__(self) -> None:
        positive = ("epochs", "learning_rate", "decay_rate", "eps", "layer_decay", "gradient_accumulation")
        for name in (*positive, "log_every", "keep_checkpoints"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("max_steps", "max_minutes", "fit_minutes", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} must be above 0, not {value}; leave it out for none")
        not_negative = ("min_learning_rate", "warmup_steps", "warmup_learning_rate", "weight_decay", "seed")
        intervals = ("evaluate_every_epochs", "evaluate_every_steps", "checkpoint_every", "checkpoint_minutes")
        for name in (*not_negative, *intervals):
            if getattr(self, name) < 0:
                raise UserError(f"{name} cannot be negative, and is {getattr(self, name)}")
        if self.optimizer == "muon" and self.sharding != "none":
            raise UserError('optimizer "muon" needs whole matrices, which sharding "fsdp2" splits; take "adamw"')
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must lie in [0, 1), and are {self.betas}")
        if self.min_learning_rate > self.learning_rate:
            raise UserError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}; lower it"
            )
        if self.layer_decay > 1:
            raise UserError(f"layer_decay {self.layer_decay} makes lower layers learn faster; take 1 or less")


def within(config: TrainConfig, seconds: float | None) -> TrainConfig:
    """The same training fitted to a time, and stopped after a fifth more should that fail; None changes nothing."""
    if seconds is None:
        return config
    seconds = max(1.0, seconds)
    return replace(config, fit_minutes=seconds / 60, max_minutes=1.2 * seconds / 60)


MAY_CHANGE = frozenset(
    {
        *("epochs", "max_steps", "max_minutes", "fit_minutes"),
        *("compile", "gradient_checkpointing", "sharding", "sharding_layers", "find_unused_parameters"),
        *("static_graph", "log_every", "evaluate_every_epochs", "evaluate_every_steps", "evaluate_first"),
        *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "monitor", "monitor_mode", "trackers"),
    }
)
"""Fields that a resumed run may set anew: how long, how it is computed and what is written, not what is learned.
(A cosine or linear schedule ends where the new length says.)"""
