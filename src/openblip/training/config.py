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
    """Passes over the loader; not read when `max_steps` is set."""
    max_steps: int | None = None
    """Optimiser steps, in place of epochs."""
    max_minutes: float | None = None
    """Stop cleanly (log, evaluate, save, export) once this much time is spent, all sessions together."""
    fit_minutes: float | None = None
    """Minutes that training is to take, evaluations included. The number of steps is set from the measured speed,
    first after `FIT_AFTER` steps, or half of fewer planned ones, and again after each evaluation, and kept in
    checkpoints, so that the schedule ends when the time does; `max_steps` is the estimate until then."""

    learning_rate: float = 3e-4
    """The peak learning rate."""
    min_learning_rate: float = 1e-6
    """The learning rate that the schedule never falls below."""
    warmup_steps: int = 3000
    """Steps of a linear rise to the peak; the schedule takes over where it is lower."""
    warmup_learning_rate: float = 1e-6
    """The learning rate at which the warm-up begins."""
    schedule: Literal["epoch-decay", "cosine", "cosine-epoch", "linear", "constant"] = "epoch-decay"
    """"epoch-decay" multiplies by `decay_rate` at each epoch (BLIP's pre-training), "cosine-epoch" follows a cosine
    in whole epochs (BLIP's fine-tuning), "cosine" follows one in steps (BLIP-2), "linear" falls in steps."""
    decay_rate: float = 0.9
    """Factor of "epoch-decay" at each epoch."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """"adamw" is the papers'. "muon" (Jordan et al. 2024) orthogonalises the updates of hidden matrices and leaves
    the rest to AdamW: small models from scratch learn in about two thirds of the steps (docs/training.md)."""
    weight_decay: float = 0.05
    """Decoupled weight decay, as in AdamW."""
    weight_decay_on: Literal["all", "matrices"] = "all"
    """"all" decays every parameter, as BLIP's reference does; "matrices" spares biases, norms and other vectors, as
    BLIP-2's does."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moments; BLIP-2 uses (0.9, 0.98)."""
    eps: float = 1e-8
    """Term added to AdamW's denominator."""
    layer_decay: float = 1.0
    """A layer d layers below the top has a learning rate of `layer_decay ** d` times the top's; 1 is off."""
    clip_norm: float | None = None
    """The gradient is scaled down to this norm where its norm is larger; None does not clip."""
    gradient_accumulation: int = 1
    """Micro-batches that make one step of the optimiser; the last step of an epoch may have fewer."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the forward pass (weights stay float32); "auto" is bfloat16 where the hardware computes it
    fast."""
    device: Literal["auto", "cpu"] = "auto"
    """"auto" uses a GPU where there is one; "cpu" leaves it alone."""
    compile: Literal["none", "blocks", "step"] = "none"
    """What torch.compile compiles: "blocks" each transformer block, whose code all blocks of a kind share, while
    evaluations stay as they are; "step" the whole step, which takes many times longer to start."""
    gradient_checkpointing: float = 0.0
    """Share of the blocks, 0 to 1, that recompute their activations in the backward pass: less memory, with 1 about
    a third more time; a share that just fits the memory costs less."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Over several processes "none" keeps whole copies (DDP), "fsdp2" splits weights, gradients and moments."""
    sharding_layers: tuple[str, ...] = ()
    """Class names of modules that FSDP2 gathers one at a time; an empty tuple gathers the model at once."""
    find_unused_parameters: bool = False
    """Tells DDP that some trained parameters take no part in some steps."""
    static_graph: bool = False
    """Tells DDP that every step uses the same parameters in the same order, which lets shared weights be
    recomputed."""

    seed: int = 0
    """Seed of dropout, negatives and everything else drawn in a step; each process derives its own from it."""

    log_every: int = 10
    """Steps between records of the losses."""
    evaluate_every_epochs: int = 1
    """Epochs between evaluations; 0 leaves them to `evaluate_every_steps` and the end."""
    evaluate_every_steps: int = 0
    """Steps between evaluations; 0 is off."""
    evaluate_first: bool = False
    """Evaluate before the first step too."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0 is off (one is always written at the end)."""
    checkpoint_minutes: float = 30.0
    """Minutes between checkpoints; 0 is off."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that stay; the best one stays beside them."""
    monitor: str | None = None
    """Name of the evaluation's metric that decides which model is the best; None keeps no best model."""
    monitor_mode: Literal["max", "min"] = "max"
    """Whether the largest or the smallest value of the monitored metric is the best."""
    trackers: tuple[str, ...] = ("auto",)
    """"auto" is TensorBoard where it is installed. Otherwise names: tensorboard, wandb, mlflow, comet_ml, aim,
    clearml, dvclive, swanlab, trackio. () is none."""

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
        if self.seed >= 2**63:
            raise UserError(f"seed must be below 2**63, and is {self.seed}")
        if self.optimizer == "muon" and self.sharding != "none":
            raise UserError('optimizer "muon" needs whole matrices, which sharding "fsdp2" splits; take "adamw"')
        if not 0 <= self.gradient_checkpointing <= 1:
            raise UserError(f"gradient_checkpointing is a share from 0 to 1, not {self.gradient_checkpointing}")
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
