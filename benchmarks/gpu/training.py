"""Steps of training: BLIP's pre-training beside the reference's way of computing, BLIP-2's stage 1 and stage 2."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.blip_pretrain import TrainingStep as ComparedBlip
from benchmarks.gpu.measure import attention_kernels, count_waits, measured
from benchmarks.gpu.predict import predicted
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import WORKS, Train, blip_sizes
from benchmarks.harness import largest_difference
from openblip.training.config import TrainConfig

__all__ = ["measure"]

BATCHES = {"blip": (128, 256, 64), "stage1": (128,), "stage2": (128,)}
"""objective -> batches, the one of most worth first"""
AIMS = {"blip": 170, "stage1": 450, "stage2": 500}
"""images/s; 35% MFU is BLIP's other aim"""
TOLERANCE = 0.05
"""of losses and gradient norms in bfloat16, relative to the reference's way"""


def measure(report: Report) -> None:
    """Rows for each objective and batch, with what was predicted of it; and BLIP computed as the reference does."""
    for name in BATCHES:
        _ours(report, name)
        if name == "blip":
            _beside_reference(report)


def _ours(report: Report, name: str) -> None:
    work = WORKS[name](report.pretend)
    config = TrainConfig(precision="float32" if report.pretend else "bfloat16")
    device = report.device
    with report.case(f"{name}: ours"):
        torch.manual_seed(0)
        step = work.make(device)
        for batch in (2,) if report.pretend else BATCHES[name]:
            case = f"{name}, batch {batch}: ours"
            with report.case(case):
                train = Train(step, work.batch(batch), device, config)
                before = predicted(f"{name}, batch {batch}")
                found = measured(
                    train.run,
                    device,
                    images=batch,
                    seconds=5,
                    tflop=None if before is None else before["tflop"],
                    pretend=report.pretend,
                )
                report.add(case, **found, aim_images_per_s=AIMS[name], predicted=before)
                if batch == BATCHES[name][0] or report.pretend:
                    if device.type == "cuda":
                        report.add(f"{name}: waits of the host in a step", places=count_waits(train.run))
                    report.add(f"{name}: kernels of a step", **attention_kernels(train.run, device))


def _beside_reference(report: Report) -> None:
    """Both ways on the same weights and inputs: outputs compared, then the reference's time."""
    dtype, device = "float32" if report.pretend else "bfloat16", report.device
    sizes: dict[str, Any] = {"queue_size": 960 if report.pretend else 57600, "device": device}
    config = blip_sizes(report.pretend)
    with report.case("blip: outputs beside the reference's"):
        found = [ComparedBlip(side, dtype, config, batch=4, **sizes).outputs() for side in ("ours", "peer")]
        report.add("blip: outputs beside the reference's", dtype=dtype, **_agreement(*found))
    for batch in (2,) if report.pretend else (128, 64):
        case = f"blip, batch {batch}: as the reference computes"
        with report.case(case):
            peer = ComparedBlip("peer", dtype, config, batch=batch, **sizes)
            row = measured(peer.run, device, images=batch, seconds=4, pretend=report.pretend)
            report.add(case, dtype=dtype, **row)


def _agreement(ours: dict[str, float], peer: dict[str, float]) -> dict[str, Any]:
    worst = largest_difference(ours, peer)
    return {"largest_difference": worst, "outputs_agree": worst <= TOLERANCE, "compared": len(ours)}
