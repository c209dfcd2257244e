"""What `openblip train RECIPE --dry-run` prints: the parameters, arithmetic, memory and hours of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openblip.recipes.recipe import PaperRun
    from openblip.tasks.config import RunConfig
    from openblip.tasks.plan import Plan

__all__ = ["plan_record", "show_plan"]


def show_plan(
    config: RunConfig, title: str, paper: PaperRun | None, given: dict[str, Any], *, as_json: bool = False
) -> None:
    """Predict a run and print it.

    Args:
        paper: what is published of the run, whose hardware is taken where none is given.
        given: "gpu", "gpus", "samples" and "mfu"; None is left open.

    Raises:
        UserError: the run cannot be predicted.
    """
    from openblip.core.gpus import ARITHMETIC_SHARE, gpu_named
    from openblip.tasks.plan import largest_batch, plan

    card = given["gpu"] or (paper.card if paper else "h100")
    gpus = given["gpus"] if given["gpus"] is not None else paper.gpus if paper else 1
    samples = given["samples"] if given["samples"] is not None else paper.samples if paper else 0
    mfu = ARITHMETIC_SHARE if given["mfu"] is None else given["mfu"]
    made = plan(config, gpu_named(card), gpus=gpus, mfu=mfu, samples=samples)
    record = {"recipe": title, **plan_record(made)}
    if not made.fits:
        record["largest_batch"] = largest_batch(config, made)
    if paper is not None and paper.took:
        record["published"] = paper.took
    if as_json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        _print(title, made, record)


def plan_record(made: Plan) -> dict[str, Any]:
    """A prediction as plain data."""
    from openblip.tasks.cost import RESERVE

    return {
        "gpu": made.gpu.name,
        "gpus": made.gpus,
        "mfu": made.mfu,
        "batch": made.batch,
        "accumulation": made.accumulation,
        "global_batch": made.global_batch,
        "text_tokens": made.text_tokens,
        "trained_parameters": made.trained_parameters,
        "frozen_parameters": made.frozen_parameters,
        "momentum_parameters": made.momentum_parameters,
        "step_tflop": round(made.step_tflop, 3),
        "memory_gib": {
            "weights, moments, queues": round(made.weights_gib, 2),
            "gradients and activations": round(made.passing_gib, 2),
            "buckets of DDP": round(made.buckets_gib, 2),
            f"all, with {RESERVE:g} set aside": round(made.memory_gib, 2),
            "of the card": made.gpu.gib,
        },
        "fits": made.fits,
        "step_seconds": round(made.step_seconds, 4),
        "samples_per_second": round(made.samples_per_second, 1),
        "steps": made.steps,
        "hours": None if made.hours is None else round(made.hours, 2),
    }


def _print(title: str, made: Plan, record: dict[str, Any]) -> None:
    from openblip.report import Column, Table, print_table
    from openblip.report.numbers import spell
    from openblip.tasks.cost import RESERVE

    memory = record["memory_gib"]
    parts = ", ".join(f"{name} {value:.1f}" for name, value in list(memory.items())[:3] if value)
    copies = f", momentum copies {made.momentum_parameters / 1e6:.1f}M" if made.momentum_parameters else ""
    frozen = f", frozen {made.frozen_parameters / 1e6:,.1f}M" if made.frozen_parameters else ""
    largest = record.get("largest_batch")
    fits = "fits" if made.fits else f"does not fit; the largest batch that does is {largest}"
    if largest == 0:
        fits = "does not fit, and not even a batch of 1 does"
    several = f" in {made.accumulation} micro-batches" if made.accumulation > 1 else ""
    run = "unknown: give --samples or --steps" if made.steps is None else f"{made.steps:,} steps"
    hours, trained, rate = made.hours, made.trained_parameters, made.samples_per_second
    rows = {
        "hardware": f"{made.gpus} x {made.gpu.name}",
        "batch": f"{made.batch * made.accumulation} on each GPU{several}, {made.global_batch:,} together",
        "parameters": f"trained {trained / 1e6:.1f}M{frozen}{copies}",
        "a step": f"{made.step_tflop:.1f} TFLOP on each GPU, texts of {made.text_tokens} tokens",
        "memory": f"{made.memory_gib:.1f} GiB of {made.gpu.gib}: {fits}",
        "made of": f"{parts}, set aside {RESERVE:.1f} GiB",
        "speed": f"{spell(made.step_seconds, 'seconds')} a step, {rate:,.0f} samples/s at {made.mfu:.0%} MFU",
        "the run": run
        if hours is None
        else f"{run}: {spell(3600 * hours, 'seconds')}, {hours * made.gpus:,.1f} GPU hours",
    }
    if "published" in record:
        rows["published"] = record["published"]
    columns = [Column(name=f"{title}, predicted"), Column(name="")]
    print_table(Table(title="", columns=columns, rows=list(rows.items())))
