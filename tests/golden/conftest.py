"""The reference's values, read once."""

from __future__ import annotations

import pytest
from golden_files import ROOT, GoldenBlip


@pytest.fixture(scope="session")
def golden() -> GoldenBlip:
    return GoldenBlip(ROOT / "blip")
