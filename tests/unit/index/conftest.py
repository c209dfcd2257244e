"""Models and images that the tests of the index share."""

from __future__ import annotations

import sys
from pathlib import Path

UNIT = Path(__file__).parents[1]
sys.path += [str(UNIT / "tasks"), str(UNIT / "blip2")]

from index_small import blip, photos, predictor, where  # noqa: E402, F401
