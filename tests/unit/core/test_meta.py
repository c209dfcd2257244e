"""Modules on "meta": shapes without values, and without the work of drawing them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openblip.core.meta import on_meta


def test_nothing_is_drawn_and_shapes_are_those_of_the_module() -> None:
    state = torch.random.get_rng_state()
    with on_meta():
        module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 6))
        weight = module[0].weight
        for init in (nn.init.xavier_uniform_, nn.init.kaiming_normal_, nn.init.orthogonal_, nn.init.zeros_):
            assert init(weight) is weight
        assert nn.init.trunc_normal_(tensor=weight, std=0.02) is weight
        with torch.no_grad():
            assert weight.mul_(2) is weight
            with pytest.raises(RuntimeError):
                weight.add_(torch.zeros(7))
    assert all(value.is_meta for value in module.state_dict().values())
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == {
        "0.weight": (4, 3), "0.bias": (4,), "1.weight": (4,), "1.bias": (4,), "2.weight": (5, 6),
    }  # fmt: skip
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tensors_with_values_keep_their_operations() -> None:
    with on_meta():
        here = torch.zeros(3, device="cpu")
        assert here.add_(1).mul_(2).tolist() == [2, 2, 2]
        assert nn.init.constant_(here, 5).tolist() == [5, 5, 5]
    assert torch.zeros(1).device.type == "cpu"
