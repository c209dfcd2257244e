"""The command that puts claims of the papers to the test: `experiments`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from openblip.cli.arguments import OptionalPath, Sets, person
from openblip.core.errors import UserError

__all__ = ["experiments"]


def experiments(
    name: Annotated[Positional[Literal["capfilt"]], arg(help_behavior_hint="")],
    /,
    *,
    out: OptionalPath = None,
    seeds: int = 3,
    quick: bool = False,
    set: Sets = (),
) -> None:
    """Put a paper's claims to the test in the drawn world, over seeds; ends with tables and a page.

    Args:
        name: capfilt: noisy pairs, captioner, filter, both; nucleus against beam; tuned apart against tied.
        out: folder of the experiment; left out, runs/experiments/NAME. The same command goes on in it.
        seeds: how often all is done anew.
        quick: the smallest form, to see that it runs; it shows nothing.
    """
    from openblip.core.config import override
    from openblip.experiments.capfilt import QUICK, CapFiltExperiment, run_experiment
    from openblip.experiments.page import capfilt_page
    from openblip.report import write_report

    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    folder = out or Path("runs/experiments") / (name + "-quick" * quick)
    settings = override(QUICK if quick else CapFiltExperiment(), set)
    result = run_experiment(folder, settings, seeds=seeds, on_stage=_say)
    write_report(folder / "report.html", capfilt_page(result))
    if not person():
        print(json.dumps(result["mean"]))
        return
    for table in result["mean"].values():
        _show(table)
    print(f"The page is in {folder / 'report.html'}")


def _say(stage: str) -> None:
    if person():
        print(f"[{stage}]", flush=True)


def _show(rows: dict[str, dict[str, list[float | None]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("measure")
    for name in rows:
        table.add_column(name, justify="right")
    for measure in dict.fromkeys(measure for numbers in rows.values() for measure in numbers):
        cells = []
        for numbers in rows.values():
            mean, spread = numbers.get(measure, [None, None])
            cells.append("" if mean is None else f"{mean:.3f}" + (f" ±{spread:.3f}" if spread is not None else ""))
        table.add_row(measure, *cells)
    Console().print(table)
