"""What actors of a Ray cluster run on: told by the cluster, of which the machine that asks may be a small part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.bootstrap import engines, run
from openblip.bootstrap.engines import device_on_ray, settled_here, settled_on_ray
from openblip.bootstrap.job import CapFiltConfig, Chunk
from openblip.bootstrap.run import Engine, Totals, run_capfilt
from openblip.core.errors import UserError
from openblip.data.source_config import SourceConfig

CONFIG = CapFiltConfig(source=SourceConfig(path="web"), filter="f")


class TaskError(Exception):
    """As Ray's: its message is a traceback."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback (most recent call last):\n ...")
        self.cause = cause


@dataclass
class Cluster:
    """Ray, as far as it is asked: what there is, a task where an actor would run, and a map over rows."""

    resources: dict[str, float]
    tasks: list[dict[str, Any]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    exceptions: Any = field(default_factory=lambda: type("", (), {"RayTaskError": TaskError}))

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **needs: Any) -> Callable[[Any], Any]:
        self.tasks.append(needs)
        return lambda function: type("", (), {"remote": staticmethod(lambda *arguments: arguments)})

    def get(self, arguments: tuple[str, str]) -> str:
        name, device = arguments
        assert name == "auto"
        return "bfloat16" if device == "cuda" else "float32"

    # ray.data

    class DataContext:
        @staticmethod
        def get_current() -> Any:
            return type("", (), {})()

    @staticmethod
    def ActorPoolStrategy(size: int) -> int:
        return size

    def from_items(self, rows: list[Any], **options: Any) -> Cluster:
        return self

    def map(self, actor: Any, **options: Any) -> Cluster:
        self.maps.append(options)
        return self

    def iter_rows(self) -> list[Any]:
        return []


@pytest.fixture(autouse=True)
def _no_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_gpus_of_the_cluster_are_used_from_a_machine_without_one() -> None:
    cluster = Cluster({"CPU": 64.0, "GPU": 4.0})
    config, workers = settled_on_ray(cluster, CONFIG, 0)
    assert (config.device, config.dtype, workers) == ("cuda", "bfloat16", 4)
    assert cluster.tasks == [{"num_cpus": 1, "num_gpus": 1.0}]
    # What is named stays as it is, and nothing has to be looked up.
    config, workers = settled_on_ray(cluster, replace(CONFIG, device="cpu", dtype="float32"), 3)
    assert (config.device, config.dtype, workers) == ("cpu", "float32", 3)
    assert len(cluster.tasks) == 1


@pytest.mark.parametrize("cause", [UserError('device "mps" is not there'), ValueError("a fault of ours")])
def test_a_device_that_is_not_where_an_actor_would_run(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise TaskError(cause)

    monkeypatch.setattr(Cluster, "get", fail)
    with pytest.raises(UserError if isinstance(cause, UserError) else TaskError) as told:
        settled_on_ray(Cluster({"CPU": 8.0}), replace(CONFIG, device="mps"), 0)
    assert (told.value is cause) == isinstance(cause, UserError)


def test_a_gpu_here_is_none_of_a_cluster_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    config, workers = settled_on_ray(Cluster({"CPU": 8.0}), CONFIG, 0)
    assert (config.device, config.dtype, workers) == ("auto", "float32", 1)
    config, workers = settled_here(CONFIG, 0)
    assert (config.device, config.dtype, workers) == ("auto", "bfloat16", 2)


def test_devices_that_a_cluster_does_not_give() -> None:
    with pytest.raises(
        UserError, match=r'device "cuda:1" is the GPU of one machine.*use --device cuda with --engine ray'
    ):
        device_on_ray("cuda:1", {"GPU": 2.0})
    with pytest.raises(
        UserError, match=r'device "cuda" is not available: the Ray cluster has no GPU; use --device cpu'
    ):
        device_on_ray("cuda", {"CPU": 8.0})
    with pytest.raises(UserError):
        device_on_ray("no such device", {"GPU": 2.0})


@pytest.mark.parametrize(("workers", "share"), [(1, 1.0), (2, 1.0), (3, 0.5), (5, 1 / 3)])
def test_actors_share_gpus_so_that_none_waits(monkeypatch: pytest.MonkeyPatch, workers: int, share: float) -> None:
    cluster = Cluster({"GPU": 2.0})
    monkeypatch.setattr(engines, "require", lambda name, extra: cluster)
    chunk = Chunk("0", SourceConfig(path="a.tar"), 0, 1)
    assert not list(engines.run_ray(None, CONFIG, [chunk], workers=workers, threads=1))  # type: ignore[arg-type]
    (options,) = cluster.maps
    assert options["num_gpus"] == share
    assert options["fn_constructor_args"][1]["device"] == "cuda"


def test_a_run_on_ray_asks_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And on this machine, this machine."""
    monkeypatch.setattr(engines, "require", lambda name, extra: Cluster({"GPU": 3.0}))
    found = []

    def note(config: CapFiltConfig, target: Any, output: Any, engine: Engine, *_: Any) -> Totals:
        found.append((config.device, config.dtype, engine.workers))
        return Totals()

    monkeypatch.setattr(run, "_run", note)
    run_capfilt(CONFIG, tmp_path / "out", engine=Engine(name="ray"))
    run_capfilt(replace(CONFIG, dtype="float32"), tmp_path / "out")
    assert found == [("cuda", "bfloat16", 3), ("auto", "float32", 1)]
    with pytest.raises(UserError, match="cuda:0"):
        run_capfilt(replace(CONFIG, device="cuda:0"), tmp_path / "out", engine=Engine(name="ray"))
