"""Stage 0: what is there. A GPU that torch does not see ends the run, since nothing after it means anything."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import time
import tomllib
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.measure import card
from benchmarks.gpu.report import Report
from benchmarks.gpu.stages import last_line
from openblip.core.errors import UserError
from openblip.core.gpus import gpu_of_driver
from openblip.core.runtime import machine, versions
from openblip.core.text import read_text

__all__ = ["measure", "missing_packages"]

REPO = Path(__file__).resolve().parents[2]
TESTS = ("pytest", "pytest-timeout", "filelock")


def measure(report: Report) -> None:
    """Rows: packages, the card, its bfloat16 rate and copy rate as they are here, and SDPA's kernels."""
    report.add("packages", versions=versions(), missing=missing_packages(), machine=machine())
    device = report.device
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("torch sees no GPU here; benchmarks/gpu.sh --pretend runs every stage on the CPU")
        torch.cuda.init()
        free, total = torch.cuda.mem_get_info()
        report.add(
            "card",
            name=card(device),
            capability=list(torch.cuda.get_device_capability()),
            driver=_driver(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            free_gib=round(free / 2**30, 2),
            total_gib=round(total / 2**30, 2),
            bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
            known=gpu_of_driver(card(device)) is not None,
        )
    with report.case("rates"):
        report.add("rates", **_rates(device, report.pretend))
    for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        for masked in (False, True):
            report.add(f"SDPA {backend}{', masked' if masked else ''}", runs=_runs(backend, device, masked))


def missing_packages(project: Path = REPO / "pyproject.toml") -> list[str]:
    """Dependencies of ours, and of our tests, that are not installed or too old, with what is wanted."""
    from packaging.requirements import Requirement

    wanted = [*tomllib.loads(read_text(project))["project"]["dependencies"], *TESTS]
    found = []
    for requirement in map(Requirement, wanted):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(str(requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement} (is {version})")
    return found


def _driver() -> str | None:
    try:
        told = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"Driver Version: ([\d.]+)", told)
    return match[1] if match else None


def _rates(device: torch.device, pretend: bool) -> dict[str, float]:
    """TFLOP/s of a large product in bfloat16 on random data, and GB/s of a copy, bytes read and written."""
    size = 256 if pretend else 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(2**20 if pretend else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "bfloat16_tflops": round(2 * size**3 / _seconds(lambda: left @ right, device) / 1e12, 3),
        "copy_gb_per_s": round(2 * source.numel() / _seconds(lambda: target.copy_(source), device) / 1e9, 1),
    }


def _seconds(run: object, device: torch.device, repeats: int = 10) -> float:
    assert callable(run)
    for _ in range(3):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def _runs(backend: str, device: torch.device, masked: bool) -> str:
    """ "yes", or why this kernel does not compute attention in bfloat16 with heads of 64 here."""
    query = torch.randn(2, 12, 32, 64, device=device, dtype=torch.bfloat16)
    mask = torch.ones(2, 1, 1, 32, dtype=torch.bool, device=device) if masked else None
    try:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    except RuntimeError as error:
        return last_line(str(error))
    return "yes"
