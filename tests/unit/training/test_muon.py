"""Muon over stacked matrices equals Muon one matrix at a time, and does nothing when it is held back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip.core import compute
from openblip.training.muon import COEFFICIENTS, MOMENTUM, RMS, Muon, orthogonalize

SHAPES = ((48, 32), (32, 48), (48, 32), (32, 32), (48, 32))
RATE, DECAY = 4e-3, 0.05


def _alone(gradient: Tensor) -> Tensor:
    """The iteration as it is published, for one matrix, in float64."""
    x = gradient.double()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm()
    for a, b, c in COEFFICIENTS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if gradient.shape[0] > gradient.shape[1] else x


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def _optimizer(parameters: list[nn.Parameter], **settings: Any) -> Muon:
    groups = [{"params": parameters, "weight_decay": DECAY, "use_muon": True}]
    return Muon(groups, lr=RATE, betas=(0.9, 0.98), **settings)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bfloat16 keeps 8 bits, and five steps of the iteration amplify what they lose.
    [(torch.float32, 1e-4), (torch.bfloat16, 0.15)],
)
@pytest.mark.parametrize("shape", [(32, 48), (48, 32), (32, 32)])
def test_stacked_matrices_are_iterated_as_each_alone(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    gradients = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    found = orthogonalize(gradients, dtype)
    assert found.dtype == dtype
    wanted = torch.stack([_alone(gradient) for gradient in gradients])
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance)
    lengths = torch.linalg.svdvals(found.double())
    assert lengths.max() < 1.3
    assert lengths[:, :24].min() > 0.6


def test_steps_equal_the_published_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    old_cpu = compute.Cpu(vendor="amd", avx512=False, bfloat16=False, has_onednn=True)
    monkeypatch.setattr(compute, "this_cpu", lambda: old_cpu)
    parameters = _parameters()
    optimizer = _optimizer(parameters)
    wanted = [p.detach().double() for p in parameters]
    momenta = [torch.zeros_like(w) for w in wanted]
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        for place, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            gradient = parameter.grad.double()
            momenta[place].lerp_(gradient, 1 - MOMENTUM)
            update = _alone(gradient.lerp(momenta[place], MOMENTUM)) * RMS * max(parameter.shape) ** 0.5
            wanted[place] = wanted[place] * (1 - RATE * DECAY) - RATE * update
        optimizer.step()
    for parameter, value in zip(parameters, wanted, strict=True):
        # float32 against float64: the iteration amplifies rounding about a hundredfold.
        torch.testing.assert_close(parameter.detach().double(), value, rtol=0, atol=1e-5)


def test_the_other_groups_are_torchs_adamw() -> None:
    start = torch.randn(7, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon([{"params": [ours], "weight_decay": DECAY, "use_muon": False}], lr=RATE, betas=(0.9, 0.98))
    adamw = torch.optim.AdamW([theirs], lr=RATE, betas=(0.9, 0.98), weight_decay=DECAY, fused=True)
    for step in range(5):
        for parameter, optimizer in ((ours, muon), (theirs, adamw)):
            parameter.grad = torch.randn(7, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # one kernel, summed in any order


def test_held_back_nothing_moves_and_nothing_is_remembered() -> None:
    hidden, bias = nn.Parameter(torch.randn(32, 48)), nn.Parameter(torch.randn(32))
    optimizer = Muon(
        [
            {"params": [hidden], "weight_decay": DECAY, "use_muon": True},
            {"params": [bias], "weight_decay": DECAY, "use_muon": False},
        ],
        lr=RATE,
        betas=(0.9, 0.98),
    )
    parameters = (hidden, bias)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    kept = [(p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}) for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    for parameter, (value, state) in zip(parameters, kept, strict=True):
        assert torch.equal(parameter, value)
        assert all(torch.equal(optimizer.state[parameter][name], state[name]) for name in state)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    parameters = _parameters()
    optimizer = _optimizer(parameters)
    before = parameters[1].detach().clone()
    for place, parameter in enumerate(parameters):
        parameter.grad = None if place == 1 else torch.randn_like(parameter)
    optimizer.step()
    assert torch.equal(parameters[1], before)
    assert parameters[1] not in optimizer.state
