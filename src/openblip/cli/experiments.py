"""The commands that put claims of the papers to the test: `experiments`, `compare`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from openblip.cli.arguments import OptionalPath, Sets, person
from openblip.core.errors import UserError

__all__ = ["compare", "experiments"]


def experiments(
    name: Annotated[Positional[Literal["capfilt", "blip2"]], arg(help_behavior_hint="")],
    /,
    *,
    out: OptionalPath = None,
    seeds: int = 3,
    quick: bool = False,
    tower: OptionalPath = None,
    set: Sets = (),
) -> None:
    """Put a paper's claims to the test in the drawn world, over seeds; ends with tables and a page.

    Args:
        name: capfilt: noisy pairs, captioner, filter, both; nucleus against beam; tuned apart against tied. blip2:
            with and without stage 1, its objectives, queries, both kinds of language model, zero-shot answers.
        out: folder of the experiment; left out, runs/experiments/NAME. The same command goes on in it.
        seeds: how often all is done anew.
        quick: the smallest form, to see that it runs; it shows nothing.
        tower: blip2: folder of a BLIP model whose vision tower is frozen, such as runs/demo/pretrain/model; left
            out, a short one is trained first.
    """
    from openblip.core.config import override
    from openblip.report import write_report

    if tower is not None and name != "blip2":
        raise UserError("--tower is of the experiment blip2")
    folder = out or Path("runs/experiments") / (name + "-quick" * quick)
    if name == "capfilt":
        from openblip.experiments import capfilt
        from openblip.experiments.page import capfilt_page

        settings = override(capfilt.QUICK if quick else capfilt.CapFiltExperiment(), set)
        result = capfilt.run_experiment(folder, settings, seeds=_checked(seeds), on_stage=_say)
        page = capfilt_page(result)
    else:
        from openblip.experiments.blip2 import run_blip2_experiment
        from openblip.experiments.blip2_page import blip2_page

        chosen = _blip2_settings(quick, tower, set)
        result = run_blip2_experiment(folder, chosen, seeds=_checked(seeds), on_stage=_say)
        page = blip2_page(result)
    write_report(folder / "report.html", page)
    _tell(result, folder / "report.html")


def compare(
    *,
    out: OptionalPath = None,
    seeds: int = 3,
    quick: bool = False,
    tower: OptionalPath = None,
    set: Sets = (),
) -> None:
    """Put BLIP beside BLIP-2 on the same pictures: cost of a step, captions, retrieval, zero-shot answers.

    Args:
        out: folder; left out, that of `openblip experiments blip2`, whose models are taken.
        seeds: how often all is done anew.
        quick: the smallest form, to see that it runs; it shows nothing.
        tower: as for `openblip experiments blip2`.
    """
    from openblip.experiments.compare import compare_models
    from openblip.experiments.compare_page import compare_page
    from openblip.report import save_figures, write_report

    folder = out or Path("runs/experiments") / ("blip2" + "-quick" * quick)
    result = compare_models(folder, _blip2_settings(quick, tower, set), seeds=_checked(seeds), on_stage=_say)
    page = compare_page(result)
    write_report(folder / "compare.html", page)
    save_figures(page, folder / "figures")
    _tell(result, folder / "compare.html")


def _blip2_settings(quick: bool, tower: Path | None, set: tuple[str, ...]) -> Any:
    from openblip.core.config import override
    from openblip.experiments.blip2 import QUICK, Blip2Experiment

    base = QUICK if quick else Blip2Experiment()
    return override(replace(base, tower="" if tower is None else str(tower)), set)


def _checked(seeds: int) -> int:
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    return seeds


def _tell(result: dict[str, Any], page: Path) -> None:
    """The tables for a person, one line of JSON for a program."""
    if not person():
        print(json.dumps(result["mean"]))
        return
    for table in result["mean"].values():
        _show(table)
    print(f"The page is in {page}")


def _say(stage: str) -> None:
    if person():
        print(f"[{stage}]", flush=True)


def _show(rows: dict[str, dict[str, list[float | None]]]) -> None:
    from openblip.report import Column, Table, print_table

    def shown(mean: float | None, spread: float | None) -> str:
        return "" if mean is None else f"{mean:.3f}" + (f" ±{spread:.3f}" if spread is not None else "")

    names = dict.fromkeys(name for values in rows.values() for name in values)
    cells = [[name, *(shown(*values.get(name, (None, None))) for values in rows.values())] for name in names]
    columns = [Column(name="measure"), *(Column(name=name, align="right") for name in rows)]
    print_table(Table(columns=columns, rows=cells))
