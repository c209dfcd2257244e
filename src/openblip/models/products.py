"""Linear layers whose float32 products are computed by the library that is fastest on this CPU.

torch gives float32 products on a CPU to MKL and those of bfloat16 to oneDNN. On AMD's CPUs with AVX-512 MKL leaves
half of the speed unused: 190 to 215 GFLOP/s where oneDNN reaches 340 to 480 on two cores, forward and backward,
from a dozen rows to thousands (torch 2.15; docs/performance.md). There (`core.compute` decides) products that are
large enough ask oneDNN themselves, as torch's own compiler does; elsewhere these layers are torch's. Results differ
by rounding, as they do between any two libraries.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from openblip.core.compute import compute_plan

__all__ = ["Linear", "linear", "use_onednn"]

MIN_WEIGHTS, MIN_PRODUCTS = 2**16, 2**23
"""of a layer, or of numbers multiplied; below both what a call costs beside its arithmetic decides"""


class Linear(nn.Linear):
    """`torch.nn.Linear`, by the faster library."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., I] times weight [O, I] transposed, plus bias [O]: [..., O]."""
    if not _suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        result: Tensor = _Product.apply(x, weight, bias)
        return result
    return _product(x, weight, bias)


def use_onednn(model: nn.Module) -> None:
    """Put one of these in the place of every plain linear layer of a model from another library.

    The parameters are the same objects under the same names, so that ties and state dicts are unchanged.
    """
    plain = {name: part for name, part in model.named_modules(remove_duplicate=False) if type(part) is nn.Linear}
    ours = {part: _same_parameters(part) for part in plain.values()}
    for name, part in plain.items():
        if name:  # a model that is itself a linear layer has no parent to swap it in
            model.set_submodule(name, ours[part])


def _same_parameters(layer: nn.Linear) -> Linear:
    """A `Linear` over the parameters of `layer`."""
    made = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes this; never for a compiler, for autocast, or for tensors that only look like ones."""
    # The compiler is asked first: it would trace into the questions about the CPU, and break its graph at each.
    return (
        not torch.compiler.is_compiling()
        and _prefers_onednn()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.ndim > 1
        and x.numel() > 0
        and (weight.numel() >= MIN_WEIGHTS or x.numel() * weight.shape[0] >= MIN_PRODUCTS)
        and not torch.is_autocast_enabled("cpu")
        and type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
    )


@functools.cache
def _prefers_onednn() -> bool:
    return compute_plan("cpu").float32_linear == "onednn"


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Product(torch.autograd.Function):
    """`_product` with the gradients of a linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)  # [M, O]
        return (
            _product(grad, weight.t()) if for_x else None,
            _weight_gradient(rows, x.flatten(0, -2)) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """[M, O] and [M, I] -> [O, I]. A small one is up to twice as fast where the narrower comes first."""
    small = grad.shape[1] * x.shape[1] < MIN_WEIGHTS
    if small and x.shape[1] < grad.shape[1]:
        return _product(x.t(), grad.t()).t()
    return _product(grad.t(), x.t())
