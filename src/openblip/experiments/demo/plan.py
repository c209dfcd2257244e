"""Plans the demo for a time: a calibration of some seconds, sizes that fit, and what is left for each stage.

Three things are timed on this machine: drawing images, a training step of each model size, and writing captions.
Shares of the time are fixed (`SHARES`); sizes follow from them and from what was timed. The plan estimates the
number of training steps; each training then measures its own speed and ends on its share
(`TrainConfig.fit_minutes`), and what a stage takes more or less is shared out over those that follow (`time_for`).
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from openblip.core.compute import choose_dtype
from openblip.core.config import from_dict, refuse_others, to_dict
from openblip.core.files import write_json
from openblip.core.runtime import choose_device, machine, seed_everything, usable_cores, versions
from openblip.core.text import read_json
from openblip.core.tokenizer import TokenBatch
from openblip.data.world.dataset import WorldSource
from openblip.experiments.demo.config import DemoPlan
from openblip.experiments.presets import SCENE_VOCABULARY, short_train
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.models.blip import Blip, blip_config
from openblip.models.stepper import DecoderStepper
from openblip.objectives.pretraining import BlipPretraining
from openblip.recipes.small import SHORT_RUN
from openblip.report import Column, Table
from openblip.training.log import format_duration
from openblip.training.optim import make_optimizer

__all__ = [
    "SHARES",
    "STAGE1_TRAINED",
    "Calibration",
    "PlanRow",
    "calibrate",
    "make_plan",
    "plan_rows",
    "plan_table",
    "planned",
    "time_for",
]

SHARES = {
    "world": 0.03,
    "pretrain": 0.235,
    "captioner": 0.17,
    "matcher": 0.17,
    "measure": 0.035,
    "capfilt": 0.025,
    "again": 0.03,
    "language": 0.12,
    "stage1": 0.06,
    "stage2": 0.1,
    "zero-shot": 0.015,
    "report": 0.01,
}
"""of the demo's time, for each stage; they sum to 1"""
STAGE1_TRAINED = 0.65
"""of the time of stage 1, the features' included; the rest is for measuring"""
LEAST_STEPS = 1500
"""of pre-training, from which the larger model is taken: with the 510 of 30 minutes on two cores it came as far as
the smaller one in 15"""
MICRO_PER_NANO = 4.0
"""how many times as long a step of the larger model takes"""
_BATCH, _TOKENS, _VOCAB = 64, 16, SCENE_VOCABULARY


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Seconds that things take on this machine."""

    draw: float
    """an image of the world, on one core"""
    step: dict[str, float]
    """a step of pre-training, by model size"""
    write: float
    """a caption of the smallest model, in batches"""
    seconds: float
    """that the calibration took"""


def calibrate(minutes: float) -> Calibration:
    """Time what the plan depends on, with random weights, in a small part of `minutes`."""
    began = time.perf_counter()
    source = WorldSource(num_samples=40)
    draw = _seconds(lambda: [source[index] for index in range(len(source))]) / len(source)
    nano, write = _time_model("nano")
    # The larger model is timed where it may be taken; else its cost is known well enough from the smaller one's.
    micro = MICRO_PER_NANO * nano
    if micro * LEAST_STEPS < 1.5 * SHARES["pretrain"] * 60 * minutes:
        micro = _time_model("micro")[0]
    step = {"micro": micro, "nano": nano}
    return Calibration(draw=draw, step=step, write=write, seconds=time.perf_counter() - began)


def _time_model(size: str) -> tuple[float, float]:
    """Seconds of a step of pre-training, and of a caption in a batch."""
    seed_everything(0)
    device = choose_device("auto")  # the one that the stages train on
    model = Blip(blip_config(size, vocab_size=_VOCAB))
    module = BlipPretraining(model, SHORT_RUN, enc_id=1, dec_id=2).to(device)
    optimizer = make_optimizer(module, short_train(100))
    images = model.vision.normalize(torch.randint(256, (_BATCH, 3, 64, 64), dtype=torch.uint8).to(device))
    ids = torch.randint(5, _VOCAB, (_BATCH, _TOKENS)).to(device)
    text = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    dtype = choose_dtype("auto", device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = module(images, text)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)

    step()  # the first one allocates
    seconds = statistics.median(_seconds(step) for _ in range(3))  # not the least: other programs stay busy too
    model.eval()

    @torch.no_grad()
    def write() -> None:
        memory = model.remember(model.encode_image(images))
        settings = DecodeConfig(max_new_tokens=_TOKENS, min_new_tokens=_TOKENS)
        start = torch.full((_BATCH, 1), 2, device=device)
        decode(DecoderStepper(model.decoder, memory), start, None, settings, eos_ids=3, pad_id=0)
        _wait(device)

    write()
    return seconds, _seconds(write) / _BATCH


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given; a CPU has."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def make_plan(minutes: float, timed: Calibration, *, spent: float = 0.0, seed: int = 0) -> DemoPlan:
    """Sizes with which the demo takes about `minutes` on a machine of which `timed` tells the speed.

    Args:
        spent: seconds that went before the calibration, such as for imports.
    """
    left = 60 * minutes - min(spent + timed.seconds, 20 * minutes)
    seconds = {stage: share * left for stage, share in SHARES.items()}
    size: Literal["micro", "nano"] = "micro"
    if timed.step["micro"] * LEAST_STEPS > seconds["pretrain"]:
        size = "nano"
    step, small, cost = timed.step[size], timed.step["nano"], STEP_COST[size]
    images = int(seconds["world"] * _drawing_processes() / timed.draw)
    web, simple = _between(images // 4, 500, 4000), _between(images // 5, 250, 4000)
    writing = timed.write * step / small
    measuring = seconds["measure"] + (1 - STAGE1_TRAINED) * seconds["stage1"] + seconds["zero-shot"]
    each = MEASURED["blip"] * writing + MEASURED["blip2"] * timed.write
    return DemoPlan(
        model=size,
        web_images=web,
        human_images=_between(images - web - simple, 1000, 16_000),
        simple_images=simple,
        test_images=_between(int(measuring / each), 50, 200),
        pretrain_steps=_steps(seconds["pretrain"], step * cost["pretrain"]),
        captioner_steps=_steps(seconds["captioner"], step * cost["captioner"]),
        matcher_steps=_steps(seconds["matcher"], step * cost["matcher"]),
        capfilt_images=_between(int(seconds["capfilt"] / (writing * CLEANED)), 250, web),
        again_steps=_steps(seconds["again"] / 2, step * cost["captioner"]),
        documents=_between(int(8000 * seconds["language"] / 45), 1000, 8000),
        language_steps=(_steps(seconds["language"] / 2, small), _steps(seconds["language"] / 2, small)),
        blip2_images=_between(int(6000 * seconds["stage1"] / 60), 1000, 6000),
        stage1_steps=_steps(STAGE1_TRAINED * seconds["stage1"], small * BLIP2_STEP_COST["stage1"]),
        stage2_steps=_steps(seconds["stage2"] / 2, small * BLIP2_STEP_COST["stage2"]),
        seed=seed,
        seconds={stage: round(value, 1) for stage, value in seconds.items()},
    )


STEP_COST = {
    "micro": {"pretrain": 1.2, "captioner": 0.75, "matcher": 1.0},
    "nano": {"pretrain": 2.0, "captioner": 1.1, "matcher": 1.4},
}
"""calibrated steps of its size that a stage's step costs, with its images and evaluations; from
benchmarks/results/demo-*.json"""
BLIP2_STEP_COST = {"stage1": 2.6, "stage2": 1.0}
"""the same for BLIP-2, which is of one size and reads cached features, in steps of the smallest model"""
MEASURED = {"blip": 45.0, "blip2": 165.0}
"""greedy captions, those of BLIP-2 by the smallest model, that an image costs which is measured in all ways"""
CLEANED = 6.0
"""greedy captions that an image costs which CapFilt cleans"""


def _drawing_processes() -> int:
    return usable_cores()


def _steps(seconds: float, step: float) -> int:
    return max(5, int(seconds / step))


def _between(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


def planned(out: Path, minutes: float, seed: int, plan: DemoPlan | None = None, *, spent: float = 0.0) -> DemoPlan:
    """The plan of the demo in `out`: the one that it began with, or one made now and kept in plan.json.

    Args:
        spent: see `make_plan`.
        plan: what to do, instead of planning for `minutes`.

    Raises:
        UserError: the folder holds a demo of another time or seed, or with another plan.
    """
    path = out / "plan.json"
    wanted = {"minutes": minutes, "seed": seed} if plan is None else {"plan": to_dict(plan)}
    if path.exists():
        kept = read_json(path)
        refuse_others(out, {name: kept.get(name) for name in wanted}, wanted, "a demo")
        found: DemoPlan = from_dict(DemoPlan, kept["plan"])
        return found
    if plan is None:
        timed = calibrate(minutes)
        wanted |= {"calibration": to_dict(timed)}
        plan = make_plan(minutes, timed, spent=spent, seed=seed)
    write_json(path, {**wanted, "plan": to_dict(plan), "versions": versions(), "machine": machine()})
    return plan


def plan_rows(out: Path, plan: DemoPlan) -> list[PlanRow]:
    """What is planned for each stage beside what it has reached so far."""
    steps = {
        **dict.fromkeys(SHARES),
        "pretrain": plan.pretrain_steps,
        "captioner": plan.captioner_steps,
        "matcher": plan.matcher_steps,
        "again": plan.again_steps,
        "language": sum(plan.language_steps),
        "stage1": plan.stage1_steps,
        "stage2": 2 * plan.stage2_steps,
    }
    does = {
        "world": f"{plan.web_images + plan.human_images + plan.simple_images:,} images",
        "measure": f"{plan.test_images} unseen images of each kind",
        "capfilt": f"{plan.capfilt_images:,} web images",
        "again": "two captioners of web pairs",
        "language": f"{plan.documents:,} documents, two language models",
        "stage1": f"{plan.blip2_images:,} images",
        "stage2": "two language models",
        "zero-shot": f"{plan.test_images} unseen images of each kind",
    }
    rows = []
    for name, number in steps.items():
        path = out / "stages" / f"{name}.json"
        reached = read_json(path) if path.exists() else {}
        rows.append(
            PlanRow(
                name,
                does.get(name, ""),
                number,
                reached_steps(reached),
                plan.seconds.get(name),
                reached.get("seconds"),
            )
        )
    return rows


@dataclass(frozen=True)
class PlanRow:
    """A stage: planned and reached."""

    stage: str
    does: str
    planned_steps: int | None
    steps: int | None
    planned_seconds: float | None
    seconds: float | None


def reached_steps(reported: dict[str, Any]) -> int | None:
    """Training steps that a stage reported, of all its models together."""
    steps = reported.get("steps")
    if steps is None:
        parts = [part["steps"] for part in reported.values() if isinstance(part, dict) and "steps" in part]
        return sum(parts) if parts else None
    return sum(steps.values()) if isinstance(steps, dict) else int(steps)


def plan_table(out: Path, plan: DemoPlan) -> Table:
    """The plan, for a terminal."""
    about = "about " if plan.seconds else ""
    return Table(
        title=f"The plan: model {plan.model}, batches of {plan.batch_size} (BLIP-2: {plan.blip2_batch_size})",
        columns=[
            Column(name="stage"),
            *(Column(name=name, align="right") for name in ("steps", "time")),
            Column(name="on"),
        ],
        rows=[
            [
                row.stage,
                "" if row.planned_steps is None else f"{about}{row.planned_steps:,}",
                "" if row.planned_seconds is None else format_duration(row.planned_seconds),
                row.does,
            ]
            for row in plan_rows(out, plan)
        ],
    )


def time_for(out: Path, plan: DemoPlan, stage: str) -> float | None:
    """Seconds that a stage may take: its share of what those before it have left; None where none are planned."""
    if not plan.seconds:
        return None
    names = list(plan.seconds)
    before, after = names[: names.index(stage)], names[names.index(stage) :]
    took = 0.0
    for name in before:
        path = out / "stages" / f"{name}.json"
        took += read_json(path)["seconds"] if path.exists() else plan.seconds[name]
    left = sum(plan.seconds.values()) - took
    return max(0.2 * plan.seconds[stage], left * plan.seconds[stage] / sum(plan.seconds[name] for name in after))
