"""docs/capfilt.md and docs/blip2-proof.md hold what the stored experiments found, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.proofs import PAGES, TOWER, load, page_of, tables
from openblip.core.config import to_dict
from openblip.experiments.blip2 import Blip2Experiment
from openblip.experiments.capfilt import CapFiltExperiment

DOCS = Path(__file__).resolve().parents[3] / "docs"
TOLD = {"capfilt": "capfilt.md", "blip2": "blip2-proof.md", "compare": "blip2-proof.md"}
DEFAULTS = {
    "capfilt": CapFiltExperiment(),
    "blip2": Blip2Experiment(tower=TOWER),
    "compare": Blip2Experiment(tower=TOWER),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_holds_what_was_found(name: str) -> None:
    page, report, result = (DOCS / TOLD[name]).read_text(encoding="utf-8"), page_of(name), load(name)
    found = tables(report)
    assert len(found) >= 2
    for lines in found:
        assert len(lines) > 3
        assert "\n".join(lines) in page
    for claim in report.summary:
        assert claim in " ".join(page.split())
    assert result["config"] == to_dict(DEFAULTS[name]), "what the page's command runs"
    assert len(result["seeds"]) == 3
    assert result["versions"]["torch"]
