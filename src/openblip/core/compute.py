"""What a device computes well: the one place that chooses dtypes, and libraries for products, by device.

    plan = compute_plan("cpu")
    plan.dtype                # what "auto" means: autocast in training, weights in inference, cached features
    plan.iteration_dtype      # of an optimizer's inner products (Muon)
    plan.float32_linear       # the library that multiplies float32 matrices fastest

The choice depends on the instruction set alone and never on a measurement, so that a run that is resumed on the
same machine computes with the same code. The variables that cap instruction sets (`ATEN_CPU_CAPABILITY`,
`ONEDNN_MAX_CPU_ISA` or `DNNL_MAX_CPU_ISA`) are respected: with them an older CPU can be pretended
(`make test-old-cpu`).
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError, nearest
from openblip.core.text import read_lines

__all__ = ["DTYPES", "ComputePlan", "Cpu", "choose_dtype", "compute_plan", "has_fast_bfloat16",
           "this_cpu", "to_dtype", "uses_fused_attention"]  # fmt: skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cpu:
    """What decides how a CPU computes best."""

    vendor: Literal["intel", "amd", "arm", "other"]
    avx512: bool
    """whether torch may use AVX-512"""
    bfloat16: bool
    """whether matrix products in bfloat16 are as fast as in float32; without instructions for them they take ten
    times as long"""
    has_onednn: bool
    """whether torch was built with oneDNN's linear layer"""


@dataclass(frozen=True)
class ComputePlan:
    """How a device computes best."""

    dtype: torch.dtype
    """bfloat16 where its products are fast, float32 elsewhere"""
    iteration_dtype: torch.dtype
    """of matrix iterations that tolerate bfloat16's precision (Muon's); float32 where bfloat16 is slower"""
    float32_linear: Literal["torch", "onednn"]
    """"torch" leaves float32 products to the library torch chooses"""


def compute_plan(device: torch.device | str) -> ComputePlan:
    """How `device` computes best."""
    kind = torch.device(device).type
    if kind == "cuda":
        return _plan(torch.cuda.is_bf16_supported(including_emulation=False), "torch")
    if kind == "cpu":
        cpu = this_cpu()
        # torch gives float32 products to MKL, which uses no AVX-512 on AMD's CPUs: half of the speed of oneDNN.
        # With AVX2 alone both are equally fast (60 to 70 GFLOP/s on two cores of an older EPYC).
        prefer_onednn = cpu.has_onednn and cpu.avx512 and cpu.vendor != "intel"
        return _plan(cpu.bfloat16, "onednn" if prefer_onednn else "torch")
    return _plan(False, "torch")


def _plan(fast_bfloat16: bool, float32_linear: Literal["torch", "onednn"]) -> ComputePlan:
    dtype = torch.bfloat16 if fast_bfloat16 else torch.float32
    return ComputePlan(dtype=dtype, iteration_dtype=dtype, float32_linear=float32_linear)


def choose_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16 where the device is fast in it, float32 elsewhere.

    Raises:
        UserError: no dtype of that name.
    """
    if name == "auto":
        return compute_plan(device).dtype
    if name not in DTYPES:
        raise UserError(f'unknown dtype "{name}"{nearest(name, ["auto", *DTYPES])}')
    return DTYPES[name]


def frozen_dtype(name: str) -> Literal["float32", "bfloat16", "float16"]:
    """The dtype of a frozen part called `name`; "auto" is what this machine's GPU, or its CPU, computes best.

    It is chosen when the part is built and kept by name in the model's configuration, since what is trained on top
    of a frozen part goes with the dtype that the part had.
    """
    if name != "auto":
        return cast(Any, name)
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return cast(Any, str(choose_dtype("auto", device)).removeprefix("torch."))


def to_dtype(module: nn.Module, dtype: torch.dtype, *, but: Collection[Tensor] = ()) -> None:
    """Change the dtype of weights, and leave tables that are computed as they are.

    `Module.to` rounds these too: rotary frequencies, which transformers keeps in float32 where it reads a model in
    half precision.

    Args:
        but: parameters that keep their dtype.
    """
    kept = {id(value) for value in but}
    for part in module.modules():
        for value in part.parameters(recurse=False):
            if value.is_floating_point() and id(value) not in kept:
                value.data = value.data.to(dtype)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_floating_point() and name not in part._non_persistent_buffers_set:
                part._buffers[name] = buffer.to(dtype)


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices no slower than those of float32."""
    return compute_plan(device).dtype == torch.bfloat16


def uses_fused_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's fused attention is faster here than matrix products that keep the probabilities.

    On a CPU its backward takes twice as long in float32 and 5 to 40 times in bfloat16, its forward twice in
    bfloat16 (measured with torch 2.15, docs/performance.md).
    """
    return device.type != "cpu" or not (torch.is_grad_enabled() or dtype != torch.float32)


@functools.cache
def this_cpu() -> Cpu:
    """The CPU of this machine, as far as torch may use it."""
    machine = platform.machine().lower()
    vendor = _vendor(machine)
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    # oneDNN accepts bfloat16 on plain AVX-512 too, where it converts to float32: ask for the instructions.
    accepted = bool(probe is not None and probe())
    return Cpu(
        vendor=vendor,
        avx512=torch.backends.cpu.get_cpu_capability().startswith("AVX512"),
        bfloat16=accepted and _multiplies_bfloat16(vendor),
        has_onednn=torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    )


def _multiplies_bfloat16(vendor: str) -> bool:
    if vendor == "arm":
        return True
    # Intel's AVX-512 multiplies bfloat16 at half of float32's rate (176 and 336 GFLOP/s on two cores of a Xeon of
    # 2023, torch 2.15), so there only AMX counts, which virtual machines often lack. AMD's is as fast as float32.
    if vendor == "intel":
        return _may_use("AMX") and _has("_is_amx_tile_supported")
    return _may_use("AMX", "BF16", "FP16", "AVX10") and _has("_is_avx512_bf16_supported")


def _may_use(*names: str) -> bool:
    """Whether oneDNN's instruction sets have no cap, or one whose name holds one of these."""
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    return cap.upper() in ("", "ALL", "DEFAULT") or any(name in cap.upper() for name in names)


def _has(probe: str) -> bool:
    """What a function of torch.cpu says of this CPU; False where this version of torch lacks it."""
    return bool(getattr(torch.cpu, probe, lambda: False)())


def _vendor(machine: str) -> Literal["intel", "amd", "arm", "other"]:
    if machine in ("arm64", "aarch64"):
        return "arm"
    described = platform.processor()
    with suppress(OSError):  # not Linux: platform.processor() names the vendor
        described += next((line for line in read_lines("/proc/cpuinfo") if line.startswith("vendor_id")), "")
    if "Intel" in described:
        return "intel"
    return "amd" if "AMD" in described else "other"
