"""The optimiser's groups and the learning rate as a function of the step.

The rate is computed from the step number, never accumulated: resuming needs no state, and the curve of a run
can be drawn without running it.

`AdamW` is torch's fused one. It takes a flag on the device (`found_inf`) that turns a step into nothing,
moments included, so a gradient that is not finite is never applied and nothing waits for the device to know.
`Muon` takes the same flag.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openblip.core.errors import UserError
from openblip.training.config import TrainConfig
from openblip.training.muon import Muon

__all__ = [
    "HasLayerIds",
    "clip_gradient",
    "gradient_norm",
    "hold_back",
    "learning_rate",
    "local",
    "make_optimizer",
    "set_learning_rate",
]


@runtime_checkable
class HasLayerIds(Protocol):
    """A module that says how deep each of its parameters sits."""

    def layer_ids(self) -> dict[str, int]:
        """Parameter name -> layer, 0 nearest to the input; names left out count as the top."""
        ...


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Rate of the step with index `step` (the first is 0).

    The curves are those of the references: BLIP's `max(min, peak * rate ** epoch)` and
    `min + (peak - min) * (1 + cos(pi * epoch / epochs)) / 2`, BLIP-2's the same cosine in steps. A warm-up that is
    longer than an epoch continues until it meets the curve.
    """
    peak, lowest = config.learning_rate, config.min_learning_rate
    epoch, epochs = step // steps_per_epoch, math.ceil(total_steps / steps_per_epoch)
    match config.schedule:
        case "epoch-decay":
            rate = max(lowest, peak * config.decay_rate**epoch)
        case "cosine-epoch":
            rate = lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))
        case "cosine":
            rate = lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
        case "linear":
            rate = lowest + (peak - lowest) * max(0.0, 1 - step / total_steps)
        case "constant":
            rate = peak
    if step < config.warmup_steps:
        start = config.warmup_learning_rate
        rate = min(rate, start + (peak - start) * step / config.warmup_steps)
    return rate


FEW_ROWS = 16
"""a matrix with a side below this (ITM's two classes) has next to nothing to orthogonalise: AdamW takes it"""


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of the parameters that want a gradient, in groups of equal decay and equal lr_scale.

    Muon's step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that one rate serves both.

    Raises:
        UserError: nothing to train, or layer-wise decay of a module that does not number its layers.
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not named:
        raise UserError("there is nothing to train: every parameter of the model is frozen")
    lr_scales = _shares(module, config, named)
    hidden = _hidden_matrices(module) if config.optimizer == "muon" else set()
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        spared = config.weight_decay_on == "matrices" and (parameter.ndim < 2 or name.endswith("bias"))
        decay = 0.0 if spared else config.weight_decay
        groups.setdefault((decay, lr_scales.get(name, 1.0), parameter in hidden), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": lr_scale, "use_muon": in_hidden}
        for (decay, lr_scale, in_hidden), parameters in groups.items()
    ]
    if config.optimizer == "muon":
        return Muon(described, lr=config.learning_rate, betas=config.betas, eps=config.eps)
    return torch.optim.AdamW(
        described,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _hidden_matrices(module: nn.Module) -> set[Tensor]:
    """What Muon is for: matrices between hidden layers, neither embeddings nor heads of few classes."""
    # A head's weight may be an embedding too, whose rows are looked up one by one: it is not Muon's.
    embeddings = {layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding)}
    return {
        layer.weight
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and min(layer.weight.shape) >= FEW_ROWS and layer.weight not in embeddings
    }


def hold_back(optimizer: torch.optim.Optimizer, found_inf: Tensor) -> None:
    """Let the coming step do nothing where `found_inf`, a scalar on the device, is not 0."""
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]


def _shares(module: nn.Module, config: TrainConfig, names: Iterable[str]) -> dict[str, float]:
    """Share of the learning rate for each parameter name."""
    if config.layer_decay == 1.0:
        return {}
    if not isinstance(module, HasLayerIds):
        raise UserError(
            f"layer_decay {config.layer_decay} needs to know the layers, and {type(module).__name__} has no "
            "layer_ids(); set layer_decay = 1"
        )
    layers = module.layer_ids()
    top = max(layers.values(), default=0)
    return {name: config.layer_decay ** (top - layers.get(name, top)) for name in names}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate: `rate` times its lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Length of the whole gradient, a scalar on the device; of a sharded one, over all shards."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    shards = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    squared = _squared_length([gradient for gradient in gradients if not isinstance(gradient, DTensor)])
    # Each process holds other shards, so their squares are summed; gradients kept whole are equal everywhere and
    # count once.
    if shards:
        part = _squared_length([shard.to_local() for shard in shards])
        dist.all_reduce(part, group=shards[0].device_mesh.get_group())
        squared = squared.to(part.device) + part
    return squared.sqrt()


def clip_gradient(parameters: Iterable[nn.Parameter], norm: Tensor, longest: float) -> None:
    """Scale the gradient, `norm` long, down to `longest` where it is longer."""
    # 1e-6 as in torch's `clip_grad_norm_`, so that a zero gradient stays zero.
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp(max=1.0))


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor (the same storage), any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _squared_length(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(())
    norms = torch._foreach_norm(tensors)
    return torch.stack([norm.float() for norm in norms]).square().sum()
