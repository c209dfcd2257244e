"""Tensors gathered over two processes, with and without gradient."""

from __future__ import annotations

import os
from pathlib import Path

import launching
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from openblip.core.runtime import gather, gather_with_grad, is_main, rank, world_size

pytestmark = pytest.mark.slow


def main(arguments: list[str], environment: dict[str, str]) -> None:
    """One of two processes."""
    os.environ.update(environment)
    dist.init_process_group(
        "gloo", init_method=f"file://{arguments[0]}/store", rank=int(environment["RANK"]), world_size=2
    )
    me = rank()
    assert (me, world_size(), is_main()) == (int(environment["RANK"]), 2, me == 0)
    ids = torch.tensor([10 * me, 10 * me + 1])
    assert gather(ids).tolist() == [0, 1, 10, 11]
    assert gather(torch.tensor([[True]] if me else [[False]])).tolist() == [[False], [True]]

    torch.manual_seed(0)
    whole = torch.randn(6, 4)  # three rows of each process
    weight = torch.randn(6, 6)

    def loss_of(rows: Tensor, everything: Tensor, first: int) -> Tensor:
        # Each row against all: the mean over the rows at hand.
        return ((rows @ everything.T) * weight[first : first + len(rows)]).exp().mul(0.01).sum(1).mean()

    mine = whole[3 * me : 3 * me + 3].clone().requires_grad_()
    assert not gather(mine).requires_grad
    loss = loss_of(mine, gather_with_grad(mine), 3 * me)
    loss.backward()
    alone = whole.clone().requires_grad_()
    loss_of(alone, alone, 0).backward()
    # Data-parallel training divides the sum over processes by their number; here every row is in one process.
    torch.testing.assert_close(mine.grad / 2, alone.grad[3 * me : 3 * me + 3])  # type: ignore[operator, index]
    dist.destroy_process_group()


def test_two_processes_gather_with_gradient(tmp_path: Path) -> None:
    launching.run(main, tmp_path)
