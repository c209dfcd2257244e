"""The toy of training lives with its unit tests; all processes are forked."""

from __future__ import annotations

import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "training"))


@pytest.fixture(scope="session", autouse=True)
def _forked(forked: ForkServerContext) -> None:
    """`launching` starts processes from there."""
