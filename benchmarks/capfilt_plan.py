"""What CapFilt over 100 million images costs on one GPU, 8 and 64: on paper, from what was measured and assumed.

    python -m benchmarks.capfilt_plan        # the tables of docs/capfilt.md, from the stored results

Measured on CPUs: the arithmetic of an image and its seconds (`compare capfilt`), the time to decode a JPEG
(`compare loader`). Assumed of a GPU: what its maker says it can do, and which share of that lasts. Products are
bound by arithmetic; writing reads an image's keys and values once for each token, and that by the memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.capfilt import CASES, NEW
from benchmarks.tables import RESULTS, text_table
from openblip.core.gpus import ARITHMETIC_SHARE, MEMORY_SHARE, Gpu
from openblip.core.gpus import GPUS as KNOWN
from openblip.models.blip import blip_config

__all__ = [
    "GPUS",
    "IMAGES",
    "Cost",
    "gflop_of",
    "load",
    "memory_bytes",
    "plan",
    "plan_table",
    "speed_table",
]

MACHINE = "amd-epyc-2-cores"
IMAGES = 100_000_000
COUNTS = (1, 8, 64)
GPUS = (KNOWN["a100-80"], KNOWN["h100"])


@dataclass(frozen=True)
class Cost:
    """Of one case on one kind of GPU."""

    case: str
    gpu: Gpu
    ms_per_image: float
    hours: tuple[float, ...]
    """for all images, on each of `COUNTS`"""
    cores: float
    """of the measured kind that decode for one GPU"""


def load(name: str) -> dict[str, Any]:
    """A stored result."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}-{MACHINE}.json").read_text(encoding="utf-8"))
    return result


def gflop_of(capfilt: dict[str, Any], case: str) -> float:
    """Arithmetic of one image: seen by two towers, written about, its texts scored."""
    row = next(row for row in capfilt["rows"] if row["case"] == case)
    images = round(row["ours_images_per_s"] * row["ours_s"])
    return float(1000 * row["ours_tflop"] / images)


def memory_bytes() -> int:
    """Bytes of an image's keys and values in bfloat16, all layers."""
    config = blip_config("base", image_size=384)
    tokens = (384 // 16) ** 2 + 1
    return 2 * 2 * config.text.depth * tokens * config.text.width


def plan(capfilt: dict[str, Any], loader: dict[str, Any]) -> list[Cost]:
    """What each case takes on each GPU: ViT-B/16, 384 px."""
    costs, decoding = [], loader["cpu_ms_per_image"]["evaluation"]
    for case in CASES:
        for gpu in GPUS:
            arithmetic = gflop_of(capfilt, case) / (gpu.tflops * ARITHMETIC_SHARE)
            reading = NEW * memory_bytes() / 1e6 / (gpu.gb_per_s * MEMORY_SHARE)
            milliseconds = arithmetic + reading
            hours = tuple(IMAGES * milliseconds / 3.6e6 / count for count in COUNTS)
            costs.append(Cost(case, gpu, milliseconds, hours, decoding / milliseconds))
    return costs


def plan_table(capfilt: dict[str, Any], loader: dict[str, Any]) -> list[str]:
    """The plan as lines of the page."""
    head = ["each image", "GPU", "ms an image", *(f"on {n}" for n in COUNTS), "cores that decode for one"]
    return text_table(
        head,
        [
            [
                cost.case, cost.gpu.name, f"{cost.ms_per_image:.2f}", *(f"{h:.1f} h" for h in cost.hours),
                f"{cost.cores:.1f}",
            ]
            for cost in plan(capfilt, loader)
        ],
        left=2,
    )  # fmt: skip


def speed_table(capfilt: dict[str, Any]) -> list[str]:
    """The command against the plain loop, as lines of the page."""
    head = ["each image", "dtype", "ours", "plain loop", "times faster", "for 1,000 images"]
    return text_table(
        head,
        [
            [
                row["case"], row["dtype"], f"{row['ours_images_per_s']:.2f} a second",
                f"{row['peer_images_per_s']:.2f} a second", f"{row['ratio']:.1f}",
                f"{1000 / row['ours_images_per_s']:,.0f} s",
            ]
            for row in capfilt["rows"]
        ],
        left=2,
    )  # fmt: skip


if __name__ == "__main__":
    found = load("capfilt")
    print("\n".join([*speed_table(found), "", *plan_table(found, load("loader"))]))
