"""On a GPU: training steps never make the host wait, for each objective as it is trained with."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.steps import WORKS, Train
from openblip.training.config import TrainConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_never_waits_for_a_gpu(name: str, precision: str) -> None:
    work = WORKS[name](True)
    train = Train(work.make("cuda"), work.batch(4), "cuda", TrainConfig(precision=precision))
    train.run()  # moments are made, kernels are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = train.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(bool(torch.isfinite(loss)) for loss in losses.values())
