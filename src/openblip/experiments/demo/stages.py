"""The demo: BLIP learns from scratch in a scene world where truth is known, and shows what it learned.

    openblip demo                 # planned for 15 minutes on this machine, then open runs/demo/report.html
    openblip demo --minutes 60    # learns more
    openblip demo --quick         # a look in two minutes
    openblip demo --stage report  # one stage again, from what the others left

The demo is a list of stages, each a function of one folder; a stage that is finished is not run again, and one that
was stopped resumes. What each stage does in the time is planned before the first one begins (`plan`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from openblip.core.errors import UserError, nearest
from openblip.experiments.demo import blip, blip2, capfilt
from openblip.experiments.demo.config import DemoPlan
from openblip.experiments.demo.page import unpack_images, write_demo_report
from openblip.experiments.demo.plan import plan_table, planned, time_for
from openblip.experiments.stages import once
from openblip.report import print_table

__all__ = ["STAGES", "run_demo"]


def report(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Write report.html from what the stages left."""
    unpack_images(out / "world" / "novel-images", out / "world" / "novel", plan.test_images)
    target = write_demo_report(out, plan)
    return {"report": str(target.name)}


Stage = Callable[[Path, DemoPlan, float | None], dict[str, Any]]
"""folder, plan and the seconds that the stage may take -> what it reports"""

STAGES: dict[str, Stage] = {
    "world": blip.make_world,
    "pretrain": blip.pretrain,
    "captioner": blip.tune_captioner,
    "matcher": blip.tune_matcher,
    "measure": blip.measure,
    "capfilt": capfilt.clean_web,
    "again": capfilt.learn_anew,
    "language": blip2.read_texts,
    "stage1": blip2.first_stage,
    "stage2": blip2.second_stage,
    "zero-shot": blip2.ask,
    "report": report,
}


def run_demo(
    out: Path,
    minutes: float = 15.0,
    *,
    began: float | None = None,
    seed: int = 0,
    plan: DemoPlan | None = None,
    only: tuple[str, ...] = (),
    again: bool = False,
) -> Path:
    """Run the stages that are not finished; returns the report's path.

    Args:
        minutes: that the whole is to take.
        began: when its time began, by `time.perf_counter`; left out, now.
        plan: what to do, instead of planning for the time.
        only: names of stages to run alone.
        again: run stages even if they are finished.

    Raises:
        UserError: an unknown stage, one whose predecessors have not run, or a folder with another demo.
    """
    console = Console()
    for name in only:
        if name not in STAGES:
            raise UserError(f'the demo has no stage "{name}"{nearest(name, STAGES)}')
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter() if began is None else began
    plan = planned(out, minutes, seed, plan, spent=time.perf_counter() - began)
    print_table(plan_table(out, plan))
    for number, (name, stage) in enumerate(STAGES.items(), 1):
        marker = out / "stages" / f"{name}.json"
        if only and name not in only:
            continue
        if marker.exists() and not again and name not in only and name != "report":
            console.print(f"[bold]{number}/{len(STAGES)} {name}[/] is done already")
            continue
        earlier = [other for other in list(STAGES)[: number - 1] if not (out / "stages" / f"{other}.json").exists()]
        if earlier:
            raise UserError(f'stage "{name}" needs "{earlier[0]}" first; run: openblip demo --out {out}')
        console.print(f"[bold]{number}/{len(STAGES)} {name}[/]: {(stage.__doc__ or '').partition(chr(10))[0]}")
        once(marker, partial(_timed, stage, out, plan, time_for(out, plan, name)), again=True)
    target = out / "report.html"
    console.print(
        f"\nDone in {(time.perf_counter() - began) / 60:.1f} minutes. Open [bold]{target}[/] in a browser, "
        "then try:\n"
        f"  openblip caption {out}/world/novel-images --model {out}/captioner/model\n"
        f'  openblip retrieve "a red circle" {out}/world/novel-images --model {out}/matcher/model\n'
        f"  openblip ask {out}/world/novel-images --model {out}/blip2/stage2-decoder/model "
        '--question "how many objects are there?"',
        soft_wrap=True,
    )
    return target


def _timed(stage: Stage, out: Path, plan: DemoPlan, seconds: float | None) -> dict[str, Any]:
    began = time.perf_counter()
    found = stage(out, plan, seconds)
    return {**found, "seconds": round(time.perf_counter() - began, 1)}
