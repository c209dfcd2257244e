"""The command that puts claims of the papers to the test: `experiments`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from openblip.cli.arguments import OptionalPath, Sets, person
from openblip.core.errors import UserError

if TYPE_CHECKING:
    from openblip.report import Report

__all__ = ["experiments"]

Name = Literal[
    "capfilt",
    "blip2",
    "compare",
    "pointing",
    "openstax",
    "openstax-web",
    "openstax-filter",
    "easyvqa",
    "nlvr",
    "flickr8k",
    "flickr8k-variants",
    "flickr8k-blip",
    "flickr8k-capfilt",
]


def experiments(
    name: Annotated[Positional[Name], arg(help_behavior_hint="")],
    /,
    *,
    out: OptionalPath = None,
    seeds: int = 3,
    quick: bool = False,
    tower: OptionalPath = None,
    data: OptionalPath = None,
    set: Sets = (),
    store: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
) -> None:
    """Put a paper's claims to the test in the scene world, or train and measure on small real data, over seeds.

    Args:
        name: capfilt: noisy pairs, captioner, filter, both; nucleus against beam; tuned apart against tied. blip2:
            with and without stage 1, its objectives, queries, both kinds of language model, zero-shot answers.
            compare: BLIP beside BLIP-2 on the same images, with the models of blip2. pointing: Grad-CAM maps.
            openstax, openstax-web, openstax-filter, easyvqa, nlvr: real data (docs/real-data.md, docs/vqa.md).
            flickr8k, flickr8k-variants, flickr8k-blip, flickr8k-capfilt: real photographs and pretrained parts.
        out: folder of the experiment; left out, its own in runs/experiments. The same command resumes in it.
        seeds: how often everything is repeated.
        quick: the smallest form, to see that it runs; its figures mean nothing.
        tower: blip2 and compare: folder of a BLIP model whose vision tower is frozen, such as
            runs/demo/pretrain/model; left out, a short one is trained first.
        data: the folder that holds the real data sets; left out, that of the environment variable OPENBLIP_REAL.
        store: write the result to this file too, and print its tables in Markdown.
    """
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {seeds}")
    if tower is not None and name not in ("blip2", "compare"):
        raise UserError("--tower is of the experiments blip2 and compare")
    if store is not None and (quick or set):
        raise UserError("only the experiment as it is described is stored; leave out --quick, --set or --store")
    from openblip.core.config import override
    from openblip.core.files import write_json
    from openblip.experiments.catalogue import EXPERIMENTS
    from openblip.experiments.real import find_data
    from openblip.report import save_figures, write_report

    if data is not None and not EXPERIMENTS[name].data:
        raise UserError(f"--data is of experiments on real data; {name} makes its own")
    made = EXPERIMENTS[name]
    settings: Any = made.quick if quick else made.settings
    if tower is not None:
        settings = replace(settings, tower=str(tower))
    folder = out or Path("runs/experiments") / (made.folder + "-quick" * quick)
    more = {"data": find_data(made.data, data)} if made.data else {}
    result = made.run(folder, override(settings, set), seeds=seeds, on_stage=_say if person() else None, **more)
    write_json(folder / f"{made.files}results.json", result)
    page = made.page(result) if made.page is not None else None
    if page is not None:
        write_report(folder / f"{made.files}report.html", page)
        if made.figures:
            save_figures(page, folder / f"{made.files}figures")
    if store is not None:
        _store(result, page, store)
    elif not person():
        print(json.dumps(result["mean"] if page is not None else result))
    elif made.table is not None:
        print(made.table(result))
    else:
        for table in result["mean"].values():
            _show(table)
    if person():
        print(f"The result is in {folder}")


def _store(result: dict[str, Any], page: Report | None, file: Path) -> None:
    from openblip.experiments.storing import store, tables

    store(result, file)
    if page is not None:
        print("\n".join(f"- {line}" for line in page.summary))
        print("\n\n".join("\n".join(lines) for lines in tables(page)))


def _say(stage: str) -> None:
    print(f"[{stage}]", flush=True)


def _show(rows: dict[str, dict[str, list[float | None]]]) -> None:
    from openblip.experiments.labels import label
    from openblip.report import Column, Table, print_table

    def shown(mean: float | None, spread: float | None) -> str:
        return "" if mean is None else f"{mean:.3f}" + (f" ±{spread:.3f}" if spread is not None else "")

    names = dict.fromkeys(name for values in rows.values() for name in values)
    cells = [[label(name), *(shown(*values.get(name, (None, None))) for values in rows.values())] for name in names]
    columns = [Column(name="metric"), *(Column(name=name, align="right") for name in rows)]
    print_table(Table(columns=columns, rows=cells))
