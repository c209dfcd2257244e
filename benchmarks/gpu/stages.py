"""The stages in order of worth, so that a run that is cut loses the least, and the process of one stage."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

__all__ = ["STAGES", "Stage", "last_line"]


@dataclass(frozen=True)
class Stage:
    """A part of the run, in a process of its own."""

    name: str
    """of the module whose `measure(report)` it calls"""
    seconds: float
    """after which it is ended"""
    subject: str
    needed: bool = False
    """whether nothing after it means anything when it fails"""
    package: str = "benchmarks.gpu"
    """where its module is"""


STAGES = (
    Stage("environment", 50, "card, driver, packages, rates, SDPA's kernels", needed=True),
    Stage("tests", 60, "pytest -m gpu"),
    Stage("training", 120, "steps of BLIP, stage 1 and stage 2; BLIP and stage 1 beside the references' ways"),
    Stage("options", 55, "fused AdamW, SDPA, recomputing, transfers: each on or off; what the loader gives"),
    Stage("caption", 70, "captions by beam search and ITM of 128 texts, beside transformers"),
    Stage("bootstrap", 50, "CapFilt's stages beside a loop over transformers; features of ViT-g"),
    Stage("graphs", 35, "writing with its steps recorded as CUDA graphs, and launched one by one"),
    Stage("compiled", 40, "torch.compile of the blocks, whose first step may take longer than all of it"),
    Stage("train", 480, "a training for the time that is left"),
)


def last_line(text: str) -> str:
    """The last line that says something, at most 300 characters of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def main(module_name: str, path: str, pretend: str) -> None:
    """The process of one stage: imports first, then waits for its turn: a line with the seconds that it has."""
    module = importlib.import_module(module_name)
    from benchmarks.gpu.report import Report

    gc.freeze()  # what was imported stays: a stage collects between its cases, and need not look through it
    if seconds := sys.stdin.readline():
        threading.Thread(target=_end_with_the_run, daemon=True).start()
        module.measure(Report(Path(path), float(seconds), pretend == "1"))


def _end_with_the_run() -> None:
    """End this stage and what it started when the run is killed: a stage that lives on would keep the card."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
