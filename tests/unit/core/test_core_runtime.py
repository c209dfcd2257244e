"""Devices, dtypes, seeds; one process as one of many (`tests/distributed` has two)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from openblip.core import runtime
from openblip.core.errors import UserError


def test_one_process_takes_the_same_path() -> None:
    assert (runtime.rank(), runtime.world_size(), runtime.is_main()) == (0, 1, True)
    x = torch.randn(3, 2, requires_grad=True)
    gathered = runtime.gather(x)
    assert gathered.equal(x)
    assert not gathered.requires_grad


def test_devices() -> None:
    assert runtime.choose_device("cpu") == torch.device("cpu")
    assert runtime.choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match='did you mean "cuda"'):
        runtime.choose_device("cud")


def test_devices_that_are_not_there_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert runtime.choose_device("auto").type == "cpu"
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UserError, match="not available"):
            runtime.choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert runtime.choose_device("auto") == torch.device("cuda", 0)
    with pytest.raises(UserError, match="there are 1 CUDA GPUs"):
        runtime.choose_device("cuda:1")


def test_one_seed_gives_one_sequence() -> None:
    found = []
    for _ in range(2):
        runtime.seed_everything(7)
        found.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert found[0] == found[1]
    runtime.seed_everything(2**40)  # numpy takes 32 bits only


def test_what_is_told_of_machine_and_versions() -> None:
    machine = runtime.machine()
    assert machine["cores"] >= 1
    assert machine["cpu"]
    versions = runtime.versions()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert {"python", "openblip", "timm", "transformers"} <= versions.keys()


@pytest.mark.parametrize(
    ("files", "bound"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "odd"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_is_read(tmp_path: Path, files: dict[str, str], bound: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert runtime._container_quota(tmp_path) == bound


def test_no_more_cores_than_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, cores in ((None, 8), (1.5, 2), (0.3, 1), (64.0, 8)):
        monkeypatch.setattr(runtime, "_container_quota", lambda groups, quota=quota: quota)
        assert runtime.usable_cores() == cores
