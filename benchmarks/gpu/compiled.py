"""torch.compile of a step's blocks, on and off: cold, as a new machine begins.

A stage of its own and the last before the training: a compiler that takes longer than the stage has costs only
itself.
"""

from __future__ import annotations

from benchmarks.gpu.options import Option, measure_options
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import Train
from openblip.training import compiling

__all__ = ["COMPILED", "measure"]


def _compiled(train: Train) -> None:
    compiling.compile_blocks(train.step)


COMPILED = {
    "not compiled": Option(),
    "torch.compile of the blocks": Option(_compiled),
    "stage 1: not compiled": Option(work="stage1"),
    "stage 1: torch.compile of the blocks": Option(_compiled, work="stage1"),
}
"""in order of worth"""


def measure(report: Report) -> None:
    """A row for each with its gain; `first_s` is what compiling takes."""
    if report.pretend:
        compiling.BACKEND = "eager"
    measure_options(report, COMPILED)
