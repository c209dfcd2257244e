"""What the makers of GPUs say that they can do: predictions take a share of it, measurements are shares."""

from __future__ import annotations

from dataclasses import dataclass

from openblip.core.errors import UserError, nearest

__all__ = ["ARITHMETIC_SHARE", "GPUS", "MEMORY_SHARE", "Gpu", "gpu_named", "gpu_of_driver", "utilization"]

ARITHMETIC_SHARE, MEMORY_SHARE = 0.4, 0.6
"""of a vendor's figures, that is assumed to last"""


@dataclass(frozen=True)
class Gpu:
    """A GPU by its vendor's figures."""

    name: str
    tflops: float
    """dense bfloat16, sums in float32"""
    gb_per_s: float
    """of its memory"""
    gib: float
    """of memory that a program finds"""
    tflops_float32: float
    """float32 outside tensor cores"""
    driver: str = ""
    """what the driver calls it; the PCIe and NVL parts of the same names are slower"""


GPUS: dict[str, Gpu] = {
    "a100-40": Gpu("A100 40 GB", 312, 1555, 39.4, 19.5, "NVIDIA A100-SXM4-40GB"),
    "a100-80": Gpu("A100 80 GB", 312, 2039, 79.2, 19.5, "NVIDIA A100-SXM4-80GB"),
    "h100": Gpu("H100 SXM", 989, 3350, 79.1, 67, "NVIDIA H100 80GB HBM3"),
    "h200": Gpu("H200", 989, 4800, 139.8, 67, "NVIDIA H200"),
    "a6000": Gpu("RTX A6000", 155, 768, 47.4, 38.7, "NVIDIA RTX A6000"),
    "l40s": Gpu("L40S", 362, 864, 44.4, 91.6, "NVIDIA L40S"),
    "rtx4090": Gpu("RTX 4090", 165, 1008, 23.5, 82.6, "NVIDIA GeForce RTX 4090"),
}
"""by the names of --gpu"""


def gpu_named(name: str) -> Gpu:
    """The card of a name of `GPUS`.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in GPUS:
        raise UserError(f'the figures of a GPU "{name}" are not known{nearest(name, GPUS)}')
    return GPUS[name]


def gpu_of_driver(name: str | None) -> Gpu | None:
    """The card that the driver calls `name`; None for one whose figures are not here, or no card."""
    return next((gpu for gpu in GPUS.values() if name and gpu.driver == name), None)


def utilization(tflop: float, seconds: float, gpu: Gpu | None) -> float | None:
    """Model FLOPs utilization (MFU), 0 to 1: arithmetic of the model alone, over what the card can do."""
    return None if gpu is None else tflop / seconds / gpu.tflops
