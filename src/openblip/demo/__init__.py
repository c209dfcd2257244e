"""The demo: `stages` makes a world, trains and measures; `page` shows what came out."""

from openblip.demo.config import QUICK, DemoConfig
from openblip.demo.stages import STAGES, run_demo

__all__ = ["QUICK", "STAGES", "DemoConfig", "run_demo"]
