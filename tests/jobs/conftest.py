"""One small world, one model trained in it and what is fine-tuned from it, shared by all jobs, which read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from job_commands import CommandServer, serving
from job_world import NANO, SMALL, World

MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def openblip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    with serving(tmp_path_factory.mktemp("commands")) as server:
        yield server


@pytest.fixture(scope="session")
def world(openblip: CommandServer, make_once: MakeOnce) -> World:
    def fill(folder: Path) -> None:
        done = openblip("world", folder / "w", "--samples", 48, "--size", 32)
        assert done.out == f"48 images in {folder / 'w'}\n"

    return World(make_once("world", fill) / "w")


@pytest.fixture(scope="session")
def pretrained(openblip: CommandServer, world: World, make_once: MakeOnce) -> Path:
    """A run's folder: a nano BLIP, as a user trains one, with a worker process and TensorBoard."""
    settings = ("--set", "train.learning_rate=3e-3", "--set", "train.warmup_steps=5", "--set", "rerank_k=4")

    def fill(folder: Path) -> None:
        openblip(
            *("train", "small-pretrain", world.folder, "--out", folder / "first", *NANO, "--steps", 40, *settings),
            *("--validation", world.folder, "--set", "validation_samples=12", "--set", "train.log_every=5"),
        )

    return make_once("pretrained", fill) / "first"


@pytest.fixture(scope="session")
def model(pretrained: Path) -> Path:
    return pretrained / "model"


@pytest.fixture(scope="session")
def captioner(openblip: CommandServer, world: World, model: Path, make_once: MakeOnce) -> Path:
    """The best model of a captioner's run."""

    def fill(folder: Path) -> None:
        openblip(
            *("train", "blip-caption", world.folder, "--model", model, "--out", folder / "captioner", *SMALL),
            *("--set", "train.epochs=1", "--set", "train.learning_rate=1e-3", "--set", "train.log_every=5"),
            *("--validation", world.folder, "--set", "validation_samples=12"),
        )

    return make_once("captioner", fill) / "captioner" / "best"
