"""docs/search.md: the example in Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import small
from index_small import build

from openblip.checkpoints.store import StoredModel, save_model
from openblip.index import ImageIndex
from openblip.tasks.load import load

PAGE = Path(__file__).resolve().parents[3] / "docs" / "search.md"


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
