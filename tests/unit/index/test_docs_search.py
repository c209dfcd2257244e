"""docs/search.md: the example in Python runs, and its table is the stored result."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import small
from index_small import build

from benchmarks.search import LEAST_RECALL
from openblip.checkpoints.store import StoredModel, save_model
from openblip.index import ImageIndex
from openblip.tasks.load import load

REPO = Path(__file__).resolve().parents[3]
PAGE = REPO / "docs" / "search.md"
MEASURED = {
    "build_s": "building, s",
    "images_per_s": "images a second",
    "vectors_mb": "vectors, MB",
    "catalog_mb": "SQLite, MB",
    "open_s": "opening, s",
    "query_p50_ms": "a query, median, ms",
    "query_p99_ms": "a query, 99th percentile, ms",
    "recall_at_10": "recall@10 against float32",
    "memory_mb": "memory, MB",
}
"""of `benchmarks compare search`, as the page calls them"""


def test_the_example_runs(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    monkeypatch.chdir(tmp_path)
    save_model("runs/first/model", StoredModel(small.model(), small.tokenizer()))
    predictor = load("runs/first/model", device="cpu", dtype="float32")
    build(Path("INDEX"), predictor, photos)
    exec(compile(code, "search.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(str(photos)) for line in lines)
    with ImageIndex.open("INDEX", device="cpu", dtype="float32") as index:
        assert index.predictor.model is not predictor.model, "it opened the model from where it was"


def test_its_table_is_the_stored_result() -> None:
    stored = json.loads(
        (REPO / "benchmarks" / "results" / "search-amd-epyc-2-cores.json").read_text(encoding="utf-8")
    )
    assert all(row["outputs_agree"] and row["recall_at_10"] >= LEAST_RECALL for row in stored["rows"])
    lines = [["measure", *(row["case"] for row in stored["rows"])], ["---"] * 3]
    lines += [[name, *(f"{row[key]:,}" for row in stored["rows"])] for key, name in MEASURED.items()]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    assert f"<!-- search -->\n{table}\n<!-- search -->" in PAGE.read_text(encoding="utf-8")


def test_its_recall_is_the_stored_one() -> None:
    file = REPO / "benchmarks" / "results" / "search-quality-amd-epyc-2-cores.json"
    stored, page = json.loads(file.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    assert (stored["images"], stored["queries"]) == (1000, 400)
    for row in stored["rows"]:
        recalls = [f"{row[f'recall_at_{k}']:.1%} ± {100 * row[f'standard_error_at_{k}']:.1f}" for k in (1, 5, 10)]
        assert f"| {row['case']} | {' | '.join(recalls)} | {row['query_p50_ms']:.0f} |" in page
