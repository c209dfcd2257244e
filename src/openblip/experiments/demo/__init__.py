"""The demo: `plan` fits it into a time, `stages` makes a world, trains and measures; `page` shows what came out."""

from openblip.experiments.demo.config import DemoPlan
from openblip.experiments.demo.stages import STAGES, run_demo

__all__ = ["STAGES", "DemoPlan", "run_demo"]
