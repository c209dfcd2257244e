"""The demo's CapFilt: its captioner and matcher clean noisy web pairs, and new captioners learn from the result.

Two captioners start alike from the pre-trained model and learn alike for equally many steps: one from the web's
pairs as they were found, one from what CapFilt has made of them. The world knows which texts are true.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from openblip.bootstrap.job import NUCLEUS, CapFiltConfig, Output
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import run_capfilt
from openblip.checkpoints.store import open_model
from openblip.data.source_config import SourceConfig
from openblip.experiments.demo.blip import run_config, world_source
from openblip.experiments.demo.config import DemoPlan, left_by, tars_of
from openblip.experiments.judges.blip import measure_blip
from openblip.experiments.judges.capfilt_rows import judge_rows
from openblip.report import write_report
from openblip.report.capfilt import capfilt_report
from openblip.tasks.registry import adapt
from openblip.tasks.training import run_training

__all__ = ["LEARNERS", "PAGE", "clean_web", "learn_anew"]

LEARNERS = {"as found": "web", "cleaned": "clean"}
"""what a new captioner learns from -> folder of its run, in "again" """
PAGE = Places(Path("clean")).report
"""CapFilt's own report, in the demo's folder"""


def clean_web(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Clean noisy web pairs with CapFilt: the captioner writes, the matcher filters.

    Returns:
        "texts" and "images" kept, "samples", and what the truth says of them ("judged").
    """
    settings = CapFiltConfig(
        source=_web(out, plan, meta_columns=("scene", "noise")),
        captioner=str(out / "captioner" / "model"),
        filter=str(out / "matcher" / "model"),
        decode=replace(NUCLEUS, max_new_tokens=36, seed=plan.seed),
        batch_size=100,
        device="cpu",
        dtype="float32",
    )
    target = out / "clean"
    totals = run_capfilt(settings, target, Output())
    write_report(out / PAGE, capfilt_report(target))
    kept = {"texts": totals.kept_texts, "images": totals.images, "samples": totals.samples}
    return {**kept, "judged": judge_rows(Places(target).rows())}


def learn_anew(out: Path, plan: DemoPlan, seconds: float | None = None) -> dict[str, Any]:
    """Fine-tune two captioners for equally long, on the web pairs as they were found and on the cleaned ones.

    A model with random weights would learn nothing in a demo's time, so both continue from the pre-trained one.

    Returns:
        for each learner what was measured; nothing where CapFilt leaves less than a batch.
    """
    kept = left_by(out, "capfilt")["images"]
    if kept < plan.batch_size:
        Console().print(f"  left out: CapFilt left {kept} images, fewer than a batch of {plan.batch_size}")
        return {}
    sources = {
        "as found": _web(out, plan),
        "cleaned": SourceConfig(path=str(out / "clean")),
    }
    found: dict[str, Any] = {}
    if seconds is not None:
        # Each writes captions too, which took about a tenth of the stage that measured three models.
        seconds = max(seconds / 4, seconds / 2 - left_by(out, "measure")["seconds"] / 10)
    steps = plan.again_steps
    base = replace(run_config(out, plan, seconds, steps=steps, evaluate_every_steps=0), task="captioning")
    for name, folder in LEARNERS.items():
        run = replace(base, sources=(sources[name],), model=str(out / "pretrain" / "model"))
        target = out / "again" / folder
        result = run_training(run, target, resume=True, title=f"a captioner from the web pairs {name}")
        adapter = adapt(open_model(target / "model"))
        unseen = world_source(out, "test")
        metrics = measure_blip(adapter, unseen, plan.test_images)
        # The second learns for exactly as many steps as the first.
        base = replace(base, train=replace(base.train, max_steps=result.steps, fit_minutes=None, max_minutes=None))
        found[name] = {"steps": result.steps, "seconds": result.seconds, **metrics}
    return found


def _web(out: Path, plan: DemoPlan, **settings: Any) -> SourceConfig:
    """The web pairs that CapFilt cleans."""
    return SourceConfig(path=str(out / "world" / "web" / tars_of(plan.capfilt_images)), **settings)
