"""What a device computes well, decided for CPUs that are pretended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from openblip.core import compute
from openblip.core.compute import Cpu, choose_dtype, compute_plan, has_fast_bfloat16, uses_fused_attention
from openblip.core.errors import UserError

Pretend = Callable[[Cpu], None]
EPYC_ZEN4 = Cpu(vendor="amd", avx512=True, bfloat16=True, has_onednn=True)
EPYC_ZEN2 = Cpu(vendor="amd", avx512=False, bfloat16=False, has_onednn=True)
SKYLAKE = Cpu(vendor="intel", avx512=True, bfloat16=False, has_onednn=True)
SAPPHIRE_RAPIDS = Cpu(vendor="intel", avx512=True, bfloat16=True, has_onednn=True)
GRAVITON = Cpu(vendor="arm", avx512=False, bfloat16=True, has_onednn=True)
LAPTOP = Cpu(vendor="intel", avx512=False, bfloat16=False, has_onednn=True)
NO_ONEDNN = Cpu(vendor="amd", avx512=True, bfloat16=False, has_onednn=False)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    return lambda cpu: monkeypatch.setattr(compute, "this_cpu", lambda: cpu)


@pytest.mark.parametrize(
    ("cpu", "dtype", "linear"),
    [
        (EPYC_ZEN4, torch.bfloat16, "onednn"),
        (EPYC_ZEN2, torch.float32, "torch"),
        (SKYLAKE, torch.float32, "torch"),
        (SAPPHIRE_RAPIDS, torch.bfloat16, "torch"),
        (GRAVITON, torch.bfloat16, "torch"),
        (LAPTOP, torch.float32, "torch"),
        (NO_ONEDNN, torch.float32, "torch"),
    ],
)
def test_every_choice_follows_the_instruction_set(
    pretend: Pretend, cpu: Cpu, dtype: torch.dtype, linear: str
) -> None:
    pretend(cpu)
    plan = compute_plan("cpu")
    assert (plan.dtype, plan.iteration_dtype, plan.float32_linear) == (dtype, dtype, linear)
    assert choose_dtype("auto", "cpu") == dtype
    assert has_fast_bfloat16("cpu") == (dtype == torch.bfloat16)


def test_a_gpu_is_asked_itself(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(EPYC_ZEN4)
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=has: n)
        plan = compute_plan("cuda:1")
        assert plan.float32_linear == "torch"
        assert (plan.dtype == torch.bfloat16) == has
    assert compute_plan("mps").dtype == torch.float32


def test_a_named_dtype_is_taken_as_it_is(pretend: Pretend) -> None:
    pretend(EPYC_ZEN2)
    assert choose_dtype("bfloat16", "cpu") == torch.bfloat16
    assert choose_dtype("float16", "cpu") == torch.float16
    with pytest.raises(UserError, match=r'unknown dtype "bfloat" .did you mean "bfloat16"'):
        choose_dtype("bfloat", "cpu")


@pytest.mark.parametrize(
    ("vendor", "avx512_bf16", "amx", "cap", "fast"),
    [
        ("intel", False, False, "", False),
        ("intel", True, False, "", False),  # at half of float32's rate
        ("intel", True, True, "", True),
        ("intel", True, True, "avx512_core_amx_fp16", True),
        ("intel", True, True, "AVX512_CORE_BF16", False),
        ("amd", False, False, "", False),
        ("amd", True, False, "default", True),
        ("amd", True, False, "AVX512_CORE_BF16", True),
        ("amd", True, False, "AVX512_CORE", False),
        ("arm", False, False, "", True),
        ("other", False, True, "", False),
        ("other", True, False, "", True),
    ],
)
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bfloat16_needs_fast_instructions_and_leave_to_use_them(
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    accepted: bool,
    vendor: str,
    avx512_bf16: bool,
    amx: bool,
    cap: str,
    fast: bool,
) -> None:
    """oneDNN accepts bfloat16 on plain AVX-512 too, whatever the CPU or the cap."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, cap)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: accepted, raising=False)
    monkeypatch.setattr(compute, "_vendor", lambda machine: vendor)
    found = compute.this_cpu.__wrapped__()
    assert (found.vendor, found.bfloat16) == (vendor, accepted and fast)


@pytest.mark.parametrize(
    ("machine", "described", "listed", "vendor"),
    [
        ("arm64", "arm", None, "arm"),
        ("aarch64", "", ["vendor_id : ignored"], "arm"),
        ("amd64", "Intel64 Family 6 Model 151 Stepping 2, GenuineIntel", None, "intel"),
        ("amd64", "AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD", None, "amd"),
        ("x86_64", "x86_64", ["processor : 0", "vendor_id : GenuineIntel"], "intel"),
        ("x86_64", "", ["vendor_id : AuthenticAMD"], "amd"),
        ("x86_64", "i386", None, "other"),
    ],
)
def test_the_vendor_is_found_on_every_system(
    monkeypatch: pytest.MonkeyPatch, machine: str, described: str, listed: list[str] | None, vendor: str
) -> None:
    def read(path: str) -> list[str]:
        if listed is None:
            raise FileNotFoundError(path)
        return listed

    monkeypatch.setattr(compute, "read_lines", read)
    monkeypatch.setattr(compute.platform, "processor", lambda: described)
    assert compute._vendor(machine) == vendor


def test_attention_is_fused_where_that_is_faster() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with torch.no_grad():
        assert uses_fused_attention(cpu, torch.float32)
        assert not uses_fused_attention(cpu, torch.bfloat16)
    assert not uses_fused_attention(cpu, torch.float32)
    assert uses_fused_attention(cuda, torch.float32)
    assert uses_fused_attention(cuda, torch.bfloat16)
