"""Memory that is freed stays in the process, in commands and where training runs on a CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openblip.training import launch

FAULTS = """
import resource
from openblip.core.memory import keep_freed_memory

kept = keep_freed_memory()
b"x" * (48 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    b"x" * (48 << 20)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (48 << 20) // 4096
"""of a block of the script"""
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""says whether blocks have larger pages, and few faults, without asking for it"""


def faults(**variables: str) -> tuple[int, int]:
    """Whether freed memory is kept, and the page faults of four blocks after a first one."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLIP_MALLOC"} | variables
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return int(kept), int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of this system is not glibc's")
def test_freed_memory_is_used_again_unless_the_user_says_no() -> None:
    kept, count = faults()
    assert kept == 1
    assert count < PAGES // 4
    kept, count = faults(OPENBLIP_MALLOC="system")
    assert kept == 0
    if not HUGE_PAGES.is_file() or "[always]" not in HUGE_PAGES.read_text():
        assert count > 3 * PAGES


@pytest.mark.parametrize(("gpu", "device", "kept"), [(False, "auto", 1), (True, "cpu", 1), (True, "auto", 0)])
def test_a_training_keeps_freed_memory_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, device: str, kept: int
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: calls.append(None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(launch, "PartialState", lambda **options: type("State", (), {"device": options["cpu"]}))
    launch.start(device)
    assert len(calls) == kept
