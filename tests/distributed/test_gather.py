"""Tensors gathered over two processes, without gradient."""

from __future__ import annotations

import os
from pathlib import Path

import launching
import pytest
import torch
import torch.distributed as dist

from openblip.core.runtime import gather, is_main, rank, world_size

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
    assert not gather(torch.randn(3, 4, requires_grad=True)).requires_grad
    dist.destroy_process_group()


def test_two_processes_gather(tmp_path: Path) -> None:
    launching.run(main, tmp_path)
