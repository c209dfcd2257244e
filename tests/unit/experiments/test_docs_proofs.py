"""docs/capfilt.md and docs/blip2-proof.md hold what the stored experiments found, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.proofs import PAGES, TOWER, load, markdown, page_of, tables
from openblip.core.config import to_dict
from openblip.experiments.blip2 import Blip2Experiment
from openblip.experiments.capfilt import CapFiltExperiment
from openblip.report.content import Cell, Column, Table

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


def test_a_table_in_markdown() -> None:
    table = Table(
        columns=[Column(name=""), Column(name="share", unit="fraction"), Column(name="nothing"), Column(name="n")],
        rows=[["one", Cell(value=0.5, spread=0.012), None, 2.5], ["two", 0.25, None, Cell(value=None)]],
    )
    assert markdown(table) == [
        "|  | share | n |",
        "|---|---:|---:|",
        "| one | 50.0% ±\u20091.2 | 2.5 |",
        "| two | 25.0% | \u2013 |",
    ]
