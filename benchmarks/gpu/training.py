"""Steps of training: BLIP's pre-training and BLIP-2's stage 1, beside the references' ways, and stage 2."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.blip2_stage1 import Stage1Step
from benchmarks.blip_pretrain import TrainingStep as ComparedBlip
from benchmarks.gpu.aims import IMAGES_PER_S
from benchmarks.gpu.measure import attention_kernels, count_waits, forget, measured
from benchmarks.gpu.predict import predicted
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import TOKENS, WORKS, Train, blip_sizes, qformer_sizes, tower_sizes
from benchmarks.harness import largest_difference
from openblip.models.blip2 import Blip2Config
from openblip.training.config import TrainConfig

__all__ = ["measure"]

BATCHES = {"blip": (128, 256, 64), "stage1": (128,), "stage2": (128,)}
"""objective -> batches, the one of most worth first"""
TOLERANCE = 0.05
"""of losses and gradient norms in bfloat16, relative to the reference's way"""


def measure(report: Report) -> None:
    """Rows for each objective and batch, with what was predicted of it; and those computed as the references do."""
    found: dict[str, dict[str, Any]] = {}
    for name in BATCHES:
        found |= _ours(report, name)
        if name == "blip":
            _beside_reference(report)
    _beside_lavis(report, found)


def _ours(report: Report, name: str) -> dict[str, dict[str, Any]]:
    """What was measured, by case."""
    rows: dict[str, dict[str, Any]] = {}
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
                    train.run, device, images=batch, seconds=5, tflop=_tflop(name, batch), pretend=report.pretend
                )
                report.add(case, **found, aim_images_per_s=IMAGES_PER_S[name], predicted=before)
                rows[f"{name}, batch {batch}"] = found
                if batch == BATCHES[name][0] or report.pretend:
                    if device.type == "cuda":
                        report.add(f"{name}: waits of the host in a step", places=count_waits(train.run))
                    report.add(f"{name}: kernels of a step", **attention_kernels(train.run, device))
    return rows


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
            row = measured(
                peer.run, device, images=batch, seconds=4, tflop=_tflop("blip", batch), pretend=report.pretend
            )
            report.add(case, dtype=dtype, **row)


def _beside_lavis(report: Report, ours: dict[str, dict[str, Any]]) -> None:
    """Stage 1 as LAVIS computes it: outputs compared with ours on the same weights and inputs, then its time."""
    dtype, device = "float32" if report.pretend else "bfloat16", report.device
    config, batch = Blip2Config(), BATCHES["stage1"][0]
    if report.pretend:
        config, batch = Blip2Config(vision=tower_sizes(True), qformer=qformer_sizes(True)), 4
    with report.case("stage1: as LAVIS computes"):
        found, peer = [], None
        for side in ("ours", "peer"):
            peer = None  # ours is gone before the peer is drawn, and none of its memory counts as the peer's
            forget(device)
            peer = Stage1Step(side, dtype, config, whole=True, batch=batch, tokens=TOKENS["stage1"], device=device)
            found.append(peer.outputs())
        report.add("stage1: outputs beside LAVIS'", dtype=dtype, **_agreement(*found))
        assert peer is not None
        row = measured(
            peer.run, device, images=batch, seconds=4, tflop=_tflop("stage1", batch), pretend=report.pretend
        )
        report.add(f"stage1, batch {batch}: as LAVIS computes", dtype=dtype, **row)
        if (mine := ours.get(f"stage1, batch {batch}")) is not None:
            times = row["seconds"] / mine["seconds"]
            report.add(f"stage1, batch {batch}: times as fast as LAVIS computes", ratio=round(times, 3))


def _tflop(name: str, batch: int) -> float | None:
    """Of a step's own arithmetic, which is the same however it is computed: what is computed twice is no use."""
    before = predicted(f"{name}, batch {batch}")
    return None if before is None else before["tflop"]


def _agreement(ours: dict[str, float], peer: dict[str, float]) -> dict[str, Any]:
    worst = largest_difference(ours, peer)
    return {"largest_difference": worst, "outputs_agree": worst <= TOLERANCE, "compared": len(ours)}
