"""The experiments that `openblip experiments NAME` runs: settings, what runs them, what shows the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openblip.experiments import blip2, capfilt, compare, pointing
from openblip.experiments.blip2_page import blip2_page
from openblip.experiments.compare_page import compare_page
from openblip.experiments.page import capfilt_page
from openblip.experiments.real import (
    easyvqa,
    experiment,
    flickr8k,
    flickr8k_blip,
    flickr8k_capfilt,
    flickr8k_page,
    nlvr,
    openstax,
    openstax_filter,
)
from openblip.experiments.real.flickr8k_data import Flickr8kSettings
from openblip.report.content import Report

__all__ = ["EXPERIMENTS", "Experiment"]

Run = Callable[..., dict[str, Any]]
"""(out, settings, seeds=, on_stage=) -> result; of experiments on real data with `data=`, the folder of the data"""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment."""

    settings: Any
    """as it is described in docs/"""
    quick: Any
    """the smallest form, to see that it runs"""
    run: Run
    page: Callable[[dict[str, Any]], Report] | None = None
    table: Callable[[dict[str, Any]], str] | None = None
    """the result as text, where it has no page"""
    data: str = ""
    """name of the data set that it needs"""
    folder: str
    """of its runs, in runs/experiments; those that share models share it"""
    files: str = ""
    """what the names of its files begin with, where it shares a folder"""
    figures: bool = False
    """whether its page has line charts, which are written as files too"""


def _real(name: str, module: Any, *, data: str = "openstax", **more: Any) -> Experiment:
    def run(
        out: Path, settings: Any, *, data: Path, seeds: int, on_stage: Callable[[str], None] | None = None
    ) -> dict[str, Any]:
        command = f"openblip experiments {name} --seeds {seeds}"
        found: dict[str, Any] = module.run(
            name, data, out, seeds, settings, command=command, show=on_stage is not None
        )
        return found

    return Experiment(run=run, table=module.table, data=data, **more)


_BLIP2 = partial(Experiment, settings=blip2.Blip2Experiment(), quick=blip2.QUICK, folder="blip2", figures=True)
_FLICKR8K = partial(
    Experiment, settings=Flickr8kSettings(), quick=flickr8k.QUICK, folder="flickr8k", data="flickr8k"
)
EXPERIMENTS: dict[str, Experiment] = {
    "capfilt": Experiment(
        settings=capfilt.CapFiltExperiment(),
        quick=capfilt.QUICK,
        run=capfilt.run_experiment,
        page=capfilt_page,
        folder="capfilt",
    ),
    "blip2": _BLIP2(run=blip2.run_blip2_experiment, page=blip2_page),
    "compare": _BLIP2(run=compare.compare_models, page=compare_page, files="compare-"),
    "pointing": Experiment(
        settings=pointing.PointingExperiment(),
        quick=pointing.QUICK,
        run=pointing.run_pointing,
        table=pointing.table,
        folder="pointing",
    ),
    **{
        name: _real(name, experiment, settings=settings, quick=openstax.QUICK, folder=name)
        for name, settings in openstax.SETTINGS.items()
    },
    "openstax-filter": _real(
        "openstax-filter",
        openstax_filter,
        settings=openstax_filter.SETTINGS["openstax-filter"],
        quick=openstax.QUICK,
        folder="openstax",
        files="filter-",
    ),
    "easyvqa": _real(
        "easyvqa",
        easyvqa,
        data="easyvqa",
        settings=easyvqa.SETTINGS["easyvqa"],
        quick=easyvqa.QUICK,
        folder="easyvqa",
    ),
    "nlvr": _real("nlvr", nlvr, data="nlvr", settings=nlvr.SETTINGS["nlvr"], quick=nlvr.QUICK, folder="nlvr"),
    "flickr8k": _FLICKR8K(run=flickr8k.run, page=flickr8k_page.flickr8k_page, figures=True),
    "flickr8k-variants": _FLICKR8K(run=flickr8k.run_variants, page=flickr8k_page.variants_page, files="variants-"),
    "flickr8k-blip": _FLICKR8K(run=flickr8k_blip.run, page=flickr8k_page.blip_page, files="blip-"),
    "flickr8k-capfilt": _FLICKR8K(run=flickr8k_capfilt.run, page=flickr8k_page.capfilt_page, files="capfilt-"),
}
