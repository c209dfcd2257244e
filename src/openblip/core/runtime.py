"""Where the program runs: devices, seeds, ranks, and tensors gathered over ranks.

One process without a process group is rank 0 of 1 and takes the same code path as many.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.places import check_device
from openblip.core.text import read_lines, read_text

__all__ = [
    "average",
    "choose_device",
    "gather",
    "gather_with_gradient",
    "is_main",
    "machine",
    "rank",
    "seed_everything",
    "usable_cores",
    "versions",
    "whole",
    "world_size",
]


def rank() -> int:
    """Index of this process among all that train together."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def gather(tensor: Tensor) -> Tensor:
    """Concatenate `tensor` [B, ...] over ranks to [W * B, ...], without gradient; B is the same everywhere."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """As `gather`; the gradient of a row is the sum of those that the ranks give it, so that every rank must call
    this and run the backward pass."""
    return tensor if world_size() == 1 else _Gather.apply(tensor)


def average(tensor: Tensor) -> Tensor:
    """Mean of `tensor` over ranks, without gradient; every rank must call."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
        total /= world_size()
    return total


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is sharded over ranks, gathered (every rank must call); any other as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" takes CUDA, then Apple's, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    check_device(name)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f'device "{name}" is not available: torch sees no CUDA GPU here; use --device cpu')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'device "{name}" is not available: there are {torch.cuda.device_count()} CUDA GPUs')
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f'device "{name}" is not available here; use --device cpu')
    return device


def usable_cores() -> int:
    """CPUs that this process may keep busy, by its affinity and its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _container_quota(Path("/sys/fs/cgroup"))
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _container_quota(groups: Path) -> float | None:
    """CPUs that the control group may use, in version 2 or 1 of its files; None where there is no bound."""
    try:
        for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
            if (groups / names[0]).exists():
                told = " ".join(read_text(groups / name) for name in names).split()
                quota, period = told[0], float(told[1])
                return None if quota in ("max", "-1") else float(quota) / period
    except (OSError, ValueError, IndexError):
        pass
    return None


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions of everything that can change results."""
    return dict(_versions())


@functools.cache  # reading the metadata of nine packages takes long
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (
        "openblip",
        "torch",
        "torchvision",
        "timm",
        "transformers",
        "tokenizers",
        "accelerate",
        "numpy",
        "pillow",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The CPU, its cores, the memory in GB, and the GPUs."""
    described: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        described["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        described["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return described


def _cpu_name() -> str:
    try:
        for line in read_lines("/proc/cpuinfo"):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
