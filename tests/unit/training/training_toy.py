"""A small Step module and a loader with a position, for the tests of training; also a command that trains them.

python training_toy.py OUT [--resume] [--key=value of TrainConfig ...]
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional as collectives
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.core.runtime import gather, rank, seed_everything, world_size
from openblip.training import Interrupted, TrainConfig, start, train
from openblip.training import state as states


class ToyLoader:
    """Rows [B, 8] with ids, shuffled anew each epoch; everything a pure function of (seed, epoch, position)."""

    def __init__(
        self, samples: int = 48, batch_size: int = 8, *, rank: int = 0, world: int = 1, seed: int = 0
    ) -> None:
        self.samples, self.batch_size, self.rank, self.world, self.seed = samples, batch_size, rank, world, seed
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return self.samples // (self.batch_size * self.world)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        torch.rand(3)  # a loader that draws from the global generator when it starts, as torch's does
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.samples)
        whole = self.batch_size * self.world
        while self.position < len(self):
            start = self.position * whole + self.rank * self.batch_size
            self.position += 1
            yield self.rows(order[start : start + self.batch_size])
        self.position = 0
        self.epoch += 1

    @staticmethod
    def rows(indices: np.ndarray) -> dict[str, Tensor]:
        inputs = [np.random.default_rng(int(index)).standard_normal(8) for index in indices]
        return {"inputs": torch.tensor(np.stack(inputs), dtype=torch.float32)}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden + F.gelu(self.linear(hidden)))


class ToyStep(nn.Module):
    """Two towers, a contrastive loss over all processes, a momentum copy, a queue, tied and frozen weights."""

    counted: Tensor
    ring: Tensor

    def __init__(self, *, dropout: float = 0.1, width: int = 16) -> None:
        super().__init__()
        self.entry = nn.Linear(8, width)
        self.left = nn.Sequential(Block(width), Block(width))
        self.right = Block(width)
        self.out = nn.Linear(width, width, bias=False)
        self.tied = nn.Linear(width, width, bias=False)
        self.tied.weight = self.out.weight
        self.frozen = nn.Linear(8, width).requires_grad_(False)
        # As weights from a file would be: the same whatever the seed.
        nn.init.constant_(self.frozen.weight, 0.1)
        nn.init.constant_(self.frozen.bias, -0.2)
        self.momentum = nn.Linear(8, width).requires_grad_(False)
        self.momentum.load_state_dict(self.entry.state_dict())
        self.temperature = nn.Parameter(torch.tensor(0.5))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("counted", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ring", torch.randn(4, width))
        self.register_buffer("alpha", torch.zeros(()), persistent=False)
        self.new_steps: list[bool] = []
        self.poison_at: int | None = None

    def set_progress(self, epoch: float, new_step: bool) -> None:
        self.alpha.fill_(min(1.0, epoch))
        self.new_steps.append(new_step)

    def frozen_parameter_names(self) -> set[str]:
        return {"frozen.weight", "frozen.bias"}

    def layer_ids(self) -> dict[str, int]:
        layers = {name: 0 for name, _ in self.entry.named_parameters(prefix="entry")}
        for index in range(2):
            block = self.left[index].named_parameters(prefix=f"left.{index}")
            layers |= {name: 1 + index for name, _ in block}
        return layers | {"out.weight": 3}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = batch["inputs"]
        with torch.no_grad():
            self.temperature.clamp_(0.01, 1.0)
            if self.training and self.new_steps and self.new_steps[-1]:
                for copy, source in zip(self.momentum.parameters(), self.entry.parameters(), strict=True):
                    copy.lerp_(source, 0.1)
            slow = self.momentum(inputs)
        hidden = self.dropout(self.entry(inputs) + self.frozen(inputs))
        left = F.normalize(self.out(self.left(hidden)), dim=-1)
        right = F.normalize(self.tied(self.right(hidden)), dim=-1)
        targets = torch.arange(len(inputs)) + len(inputs) * rank()
        similarity = left @ _gather_with_grad(right).T / self.temperature
        contrastive = F.cross_entropy(similarity, targets.to(inputs.device))
        pull = self.alpha * (hidden - slow).square().mean() + (hidden @ self.ring.clone().T).square().mean() * 0.01
        if self.training:
            with torch.no_grad():
                # Rows of all processes go in, as in a queue of momentum features.
                self.ring.copy_(torch.cat((self.ring, gather(slow).mean(0, keepdim=True)))[1:])
                self.counted += 1
        loss = contrastive + pull
        if self.poison_at is not None and int(self.counted) == self.poison_at and self.training:
            loss = loss * float("nan")
        return {"loss": loss, "contrastive": contrastive, "pull": pull}


def toy_config(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "epochs": 3,
        "learning_rate": 1e-2,
        "warmup_steps": 4,
        "log_every": 1,
        "precision": "float32",
        "device": "cpu",
        "trackers": (),
    }
    return TrainConfig(**{**defaults, **changes})


def losses(out_dir: Path, split: str = "train") -> list[dict[str, Any]]:
    """Records without what the clock decides."""
    records = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "images_per_second")
    return [{k: v for k, v in record.items() if k not in timed} for record in records if record["split"] == split]


def evaluate(module: nn.Module, step: int) -> dict[str, float]:
    assert not module.training
    torch.rand(5)  # must not disturb training
    with torch.no_grad():
        found = module(ToyLoader.rows(np.arange(100, 108)))
    return {"held_out": float(found["contrastive"])}


def _gather_with_grad(rows: Tensor) -> Tensor:
    """[B, ...] of each process -> [W * B, ...], where each process's rows get the gradients of all."""
    return rows if world_size() == 1 else torch.cat(collectives.all_gather(rows))


class SlowStep(ToyStep):
    """Leaves a parent the time to kill the process in the middle of things."""

    def __init__(self, *, dropout: float, sleep: float) -> None:
        super().__init__(dropout=dropout)
        self.sleep = sleep

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(self.sleep)
        return super().forward(batch)


def given(arguments: list[str]) -> dict[str, Any]:
    """What `--key=value` and `--flag` say; values are JSON, lists become tuples."""
    found = {}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        read = json.loads(value) if value else True
        found[name] = tuple(read) if isinstance(read, list) else read
    return found


def main(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """Train the toy; ends the process with the code a command would."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    out_dir = Path(arguments[0])
    changes = given(arguments[1:])
    own: dict[str, Any] = {"dropout": 0.1, "sleep": 0.0, "batch_size": 8, "resume": False, "poison_at": None}
    own |= {"die_in_save": 0, "full_at": 0, "signal_at": 0, "seed_of_second": 0}
    options = {name: changes.pop(name, default) for name, default in own.items()}
    start("cpu")
    seed_everything(options["seed_of_second"] if rank() == 1 else 0)
    module = SlowStep(dropout=options["dropout"], sleep=options["sleep"])
    module.poison_at = options["poison_at"]
    loader = ToyLoader(batch_size=options["batch_size"], rank=rank(), world=world_size())
    _arrange_failures(options)
    try:
        train(
            toy_config(**changes),
            module,
            loader,
            out_dir,
            evaluate=evaluate,
            resume=options["resume"],
            show=False,
            on_record=lambda record: _signal_self(record["step"], options["signal_at"]),
        )
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except UserError as error:
        (out_dir / f"error-{rank()}.txt").write_text(str(error))
        sys.exit(2)


def _signal_self(step: int, at: int) -> None:
    if step == at:
        os.kill(os.getpid(), signal.SIGTERM)


def _arrange_failures(options: dict[str, Any]) -> None:
    """Let a checkpoint's file (two for each checkpoint, counted from 1) die or meet a full disk half-way."""
    real, calls = states.write_tensors, []

    def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
        calls.append(path)
        if len(calls) == options["die_in_save"]:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        if len(calls) == options["full_at"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, tensors)

    if options["die_in_save"] or options["full_at"]:
        states.write_tensors = write_tensors


if __name__ == "__main__":
    main(sys.argv[1:])
