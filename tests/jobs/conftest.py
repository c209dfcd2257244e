"""One small world, one model trained in it and what is fine-tuned from it, shared by all jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_commands import CommandServer, serving
from job_world import NANO, SMALL, World


@pytest.fixture(scope="session")
def openblip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    with serving(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture(scope="session")
def world(openblip: CommandServer, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world") / "w"
    done = openblip("world", folder, "--samples", 48, "--size", 32)
    assert done.out == f"48 pictures in {folder}\n"
    return World(folder)


@pytest.fixture(scope="session")
def pretrained(openblip: CommandServer, world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a nano BLIP, as a user trains one, with a worker process and TensorBoard."""
    out = tmp_path_factory.mktemp("runs") / "first"
    settings = ("--set", "train.learning_rate=3e-3", "--set", "train.warmup_steps=5", "--set", "rerank_k=4")
    openblip(
        *("pretrain", world.folder, "--out", out, *NANO, "--steps", 40, *settings),
        *("--validation", world.folder, "--set", "validation_samples=12", "--set", "train.log_every=5"),
    )
    return out


@pytest.fixture(scope="session")
def model(pretrained: Path) -> Path:
    return pretrained / "model"


@pytest.fixture(scope="session")
def captioner(openblip: CommandServer, world: World, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best model of a captioner's run."""
    out = tmp_path_factory.mktemp("runs") / "captioner"
    openblip(
        *("finetune", "caption", world.folder, "--model", model, "--out", out, *SMALL),
        *("--set", "train.epochs=1", "--set", "train.learning_rate=1e-3", "--set", "train.log_every=5"),
        *("--validation", world.folder, "--set", "validation_samples=12"),
    )
    return out / "best"
