"""Muon (Jordan et al. 2024), over all matrices of a shape at once, and AdamW for everything else.

Muon replaces the momentum of a matrix by the nearest orthogonal matrix, found by a Newton-Schulz iteration. The
matrices of a transformer have few shapes, so those of one shape are stacked and iterated together: a step of a
small model takes a few large products instead of hundreds of small ones. The iteration runs in the dtype that the
device multiplies fastest (`core.compute`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

from openblip.core.compute import compute_plan

__all__ = ["Muon", "orthogonalize"]

MOMENTUM = 0.95
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""of the polynomial x -> a x + b x^3 + c x^5 at each step of the iteration (Cesista, Jiacheng and Jordan 2025)"""
RMS = 0.2
"""of an update's entries, which is AdamW's, so that one learning rate serves both (Liu et al. 2025, arXiv
2502.16982)"""
_EPS = 1e-7


@torch.no_grad()
def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Approximately the nearest matrices with orthonormal rows (or columns, where they are fewer).

    Args:
        matrices: [K, M, N].
        dtype: in which the iteration computes.

    Returns:
        [K, M, N] in `dtype`; singular values lie around 1, between 0.7 and 1.2 unless they were near 0.
    """
    assert matrices.ndim == 3, f"expected [K, M, N], got {tuple(matrices.shape)}"
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    # The iteration multiplies x x^T, which is smallest with the shorter side first.
    x = (x.mT if tall else x).contiguous()
    # The iteration needs singular values of at most 1; the Frobenius norm is no less than the largest of them.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_(min=_EPS)
    for a, b, c in COEFFICIENTS:
        gram = torch.bmm(x, x.mT)  # [K, M, M]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon with Nesterov momentum for the groups with "use_muon", AdamW for the others; both decay decoupled.

    Args:
        groups: parameter groups with "params", "weight_decay" and "use_muon"; parameters of a group with
            "use_muon" are matrices.
        lr: learning rate of all groups.
        betas: of AdamW.
    """

    found_inf: Tensor | None = None
    """scalar on the device: where it is not 0, the coming step changes nothing"""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "use_muon": False})
        for group in self.param_groups:
            if group["use_muon"]:
                assert all(p.ndim == 2 for p in group["params"]), "Muon takes matrices"

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients at hand."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["use_muon"] else self._adamw)(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        # With the flag up nothing may change: no momentum, no decay, no update.
        keep: float | Tensor = 1.0 if self.found_inf is None else 1 - self.found_inf.bool().float()
        rate = group["lr"] * keep
        dtype = compute_plan(parameters[0].device).iteration_dtype
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            alike[parameter.shape].append(parameter)
        for shape, matrices in alike.items():
            gradients = torch.stack([_grad(p) for p in matrices])  # [K, M, N]
            if self.found_inf is not None:
                gradients = torch.where(self.found_inf.bool(), 0.0, gradients)
            buffers = [self._state(p, "momentum_buffer") for p in matrices]
            momenta = torch.stack(buffers).lerp_(gradients, torch.as_tensor((1 - MOMENTUM) * keep))
            torch._foreach_copy_(buffers, list(momenta.unbind(0)))
            # Nesterov: the gradient mixed with a momentum that includes it already.
            update = orthogonalize(gradients.lerp_(momenta, MOMENTUM), dtype).to(momenta.dtype)
            torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
            # The entries of an orthogonal M x N matrix have a root mean square of 1 / sqrt(max(M, N)).
            torch._foreach_add_(matrices, list((update * (-rate * RMS * max(shape) ** 0.5)).unbind(0)))

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        first, second = group["betas"]
        steps = [self._state(p, "step") for p in parameters]
        adamw(
            parameters,
            [_grad(p) for p in parameters],
            [self._state(p, "exp_avg") for p in parameters],
            [self._state(p, "exp_avg_sq") for p in parameters],
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            found_inf=self.found_inf,
        )

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        """What the optimizer keeps of a parameter under `name`, zeros at first."""
        state = self.state[parameter]
        if name not in state:
            shape = () if name == "step" else parameter.shape
            state[name] = torch.zeros(shape, dtype=torch.float32, device=parameter.device)
        kept: Tensor = state[name]
        return kept


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
