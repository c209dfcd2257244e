"""`make test-old-cpu` caps the instructions of torch, oneDNN and MKL at AVX2: each cap has its effect."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from openblip.core.compute import compute_plan, has_fast_bfloat16

CAPS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
pytestmark = pytest.mark.skipif(
    any(os.environ.get(name) != value for name, value in CAPS.items()), reason="instructions are not capped"
)


def test_torch_uses_no_avx512() -> None:
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")


def test_onednn_multiplies_no_bfloat16_and_auto_is_float32() -> None:
    assert not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert not has_fast_bfloat16("cpu")
    assert compute_plan("cpu").dtype == torch.float32


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch is built without MKL")
def test_mkl_uses_no_avx512() -> None:
    """MKL says at its first product which instructions it uses (on AMD's CPUs never more than AVX2)."""
    code = "import torch; torch.ones(8, 8) @ torch.ones(8, 8)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MKL_VERBOSE": "1"}, capture_output=True, text=True
    )
    assert "MKL_VERBOSE" in done.stdout
    assert "AVX-512" not in done.stdout
