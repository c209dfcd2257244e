"""A share of the blocks recomputes its activations: as many as it says, with the same gradients, while training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip.models import recompute as module
from openblip.models.recompute import first_blocks, recompute


class Block(nn.Module):
    """A layer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.layer(x).tanh(), 0.5, self.training)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Blocks in the order in which they were recomputed."""
    blocks: list[nn.Module] = []
    original = module.checkpoint

    def checkpoint(forward: Callable[..., Any], block: nn.Module, *args: Any, **options: Any) -> Any:
        blocks.append(block)
        return original(forward, block, *args, **options)

    monkeypatch.setattr(module, "checkpoint", checkpoint)
    return blocks


def gradients(blocks: nn.ModuleList) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.linspace(-1, 1, 8).view(2, 4).requires_grad_()
    for block in blocks:
        x = block(x)
    x.square().sum().backward()
    found = [parameter.grad for parameter in blocks.parameters() if parameter.grad is not None]
    blocks.zero_grad()
    return found


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.7, 3), (1.0, 4)])
def test_the_first_blocks_recompute_and_change_nothing(share: float, count: int, counted: list[nn.Module]) -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(4))
    wanted, names = gradients(blocks), list(blocks.state_dict())
    recompute(blocks, share)
    assert first_blocks(blocks, share) == list(blocks)[:count]
    found = gradients(blocks)
    assert counted == list(blocks)[:count]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert list(blocks.state_dict()) == names
    blocks.eval()
    gradients(blocks)
    assert len(counted) == count, "only while they are trained"
    recompute(blocks.train(), 0)
    gradients(blocks)
    assert len(counted) == count
