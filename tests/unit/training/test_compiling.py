"""Blocks that are compiled compute what they did, in training and recomputed, and are let go at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu.steps import WORKS
from openblip.training import compiling
from openblip.training.compiling import compile_blocks, repeated_blocks, undo_compile
from openblip.training.config import TrainConfig
from openblip.training.loop import train

Gradients = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Losses, and gradients by the names of parameters."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.config.recompile_limit = limit
    torch._dynamo.reset()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Sets what `compile_blocks` compiles by."""
    return lambda chosen: monkeypatch.setattr(compiling, "BACKEND", chosen)


def gradients(name: str, prepare: Callable[[nn.Module], object], batches: tuple[int, ...]) -> Gradients:
    """The losses of the last of the batches, which differ in length, and all gradients."""
    work = WORKS[name](True)
    torch.manual_seed(0)
    step = work.make("cpu").train()
    for part in step.modules():
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0  # type: ignore[assignment]
    prepare(step)
    losses = {}
    for rows in batches:
        torch.manual_seed(rows)
        losses = step(work.batch(rows))
        losses["loss"].backward()
    return losses, {n: p.grad for n, p in step.named_parameters() if p.grad is not None}


def assert_close(found: Gradients, wanted: Gradients) -> None:
    """Up to rounding of float32: the compiler's decompositions add in another order."""
    for key, loss in wanted[0].items():
        torch.testing.assert_close(found[0][key], loss, rtol=1e-4, atol=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for key, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batches"), [("blip", (2,)), ("stage2", (2, 3))])
def test_compiled_blocks_compute_the_same(
    name: str, batches: tuple[int, ...], backend: Callable[[Any], None]
) -> None:
    """Some of them recomputed in the backward pass, and for a second batch of other lengths."""

    def compiled(step: Any) -> None:
        step.gradient_checkpointing_enable(0.5)
        compile_blocks(step)

    backend("aot_eager")
    wanted = gradients(name, lambda step: None, batches)
    assert_close(gradients(name, compiled, batches), wanted)


def test_blocks_of_a_kind_share_their_code_and_break_no_graph() -> None:
    """One code for each way in which a kind of block is used, whatever the depth; it computes the same."""
    graphs = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    def compiled(step: nn.Module) -> None:
        for block in repeated_blocks(step):
            block.compile(backend=backend, fullgraph=True)

    assert_close(gradients("blip", compiled, (2,)), gradients("blip", lambda step: None, (2,)))
    # Vision with gradient and without; text alone, its first token alone, the momentum copy's; matching and its
    # first token alone; writing.
    assert graphs == 8


def test_blocks_are_found_compiled_and_let_go() -> None:
    step = WORKS["blip"](True).make("meta")
    blocks = repeated_blocks(step)
    kinds = {type(block).__name__ for block in blocks}
    assert kinds == {"Block", "TextBlock"}
    assert len(blocks) == 2 * 5  # of encoder, decoder and the momentum copies of vision tower and encoder
    compile_blocks(step)
    names = set(step.state_dict())
    assert all(block._compiled_call_impl is not None for block in blocks)
    undo_compile(step)
    assert all(block._compiled_call_impl is None for block in blocks)
    assert set(step.state_dict()) == names


class Stack(nn.Module):
    """Two equal blocks as a step of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.blocks(batch).square().mean()}


def test_a_run_compiles_its_training_alone(tmp_path: Path, backend: Callable[[Any], None]) -> None:
    calls, at_evaluation = [], []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        calls.append(torch.is_grad_enabled())
        return graph

    def evaluate(module: nn.Module, step: int) -> dict[str, float]:
        before = len(calls)
        value = float(module(torch.ones(7, 4))["loss"])
        at_evaluation.append(len(calls) - before)
        return {"value": value}

    backend(count)
    module = Stack()
    config = TrainConfig(max_steps=3, warmup_steps=0, compile="blocks", precision="float32", trackers=())
    loader: Any = ToyBatches([torch.ones(2, 4)] * 3)
    train(config, module, loader, tmp_path / "r", evaluate=evaluate, show=False)
    assert calls
    assert all(calls), "compiled for training"
    assert at_evaluation == [0]
    assert all(block._compiled_call_impl is None for block in module.blocks)


class ToyBatches:
    """The same batches in each epoch."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.epoch = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}
