"""What the makers of GPUs say that they can do; what is measured is divided by it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["A100", "GPUS", "H100", "H200", "Gpu", "gpu_named", "utilization"]


@dataclass(frozen=True)
class Gpu:
    """A vendor's figures."""

    name: str
    tflops: float
    """dense bfloat16"""
    gb_per_s: float
    """of its memory"""


A100 = Gpu("A100 80 GB", 312, 2039)
H100 = Gpu("H100 SXM", 989, 3350)
H200 = Gpu("H200", 989, 4800)
GPUS = (A100, H100, H200)

_BY_NAME = {"NVIDIA H200": H200, "NVIDIA H100 80GB HBM3": H100, "NVIDIA A100-SXM4-80GB": A100}
"""the driver's name -> the card; the PCIe and NVL parts of the same names are slower"""


def gpu_named(name: str | None) -> Gpu | None:
    """The card that the driver calls `name`; None for one whose figures are not here, or no card."""
    return _BY_NAME.get(name or "")


def utilization(tflop: float, seconds: float, gpu: Gpu | None) -> float | None:
    """Model FLOPs utilization (MFU), 0 to 1: arithmetic of the model alone, over what the card can do."""
    return None if gpu is None else tflop / seconds / gpu.tflops
