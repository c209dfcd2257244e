"""The docs hold what the stored experiments found, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.core.config import override, to_dict
from openblip.core.text import read_json
from openblip.experiments.catalogue import EXPERIMENTS
from openblip.experiments.storing import TOWER, store, tables

REPO = Path(__file__).resolve().parents[3]
DOCS, RESULTS = REPO / "docs", REPO / "benchmarks" / "results"
TOLD = {
    "capfilt": "capfilt.md",
    "blip2": "blip2-proof.md",
    "compare": "blip2-proof.md",
    "flickr8k": "real-data.md",
    "flickr8k-blip": "real-data.md",
    "flickr8k-capfilt": "real-data.md",
    "flickr8k-variants": "real-data.md",
}
OVER_A_TOWER = ("blip2", "compare")
SEEDS = {"flickr8k-blip": 1, "flickr8k-capfilt": 1, "flickr8k-variants": 1}
"""where there are not three"""


@pytest.mark.parametrize("name", TOLD)
def test_a_page_holds_what_was_found(name: str) -> None:
    made, result = EXPERIMENTS[name], read_json(RESULTS / f"experiment-{name}.json")
    assert made.page is not None
    page, report = (DOCS / TOLD[name]).read_text(encoding="utf-8"), made.page(result)
    found = [lines for lines in tables(report) if not lines[0].startswith("| image |")]  # texts of others' books
    assert len(found) >= (1 if name == "flickr8k-variants" else 2)
    for lines in found:
        assert len(lines) > 3
        assert "\n".join(lines) in page
    for claim in report.summary:
        assert claim in " ".join(page.split())
    described = override(made.settings, [f"tower={TOWER}"]) if name in OVER_A_TOWER else made.settings
    assert result["config"] == to_dict(described), "what the page's command runs"
    assert len(result["seeds"]) == SEEDS.get(name, 3)
    assert result["versions"]["torch"]


def test_what_is_stored_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    result = {"config": {"tower": "runs/elsewhere/model", "batch_size": 8}, "mean": {}}
    store(result, tmp_path / "stored.json")
    assert read_json(tmp_path / "stored.json") == {**result, "config": {"tower": TOWER, "batch_size": 8}}
    store({"rows": []}, tmp_path / "stored.json")
    assert read_json(tmp_path / "stored.json") == {"rows": []}
