"""The benchmark of a search's quality: recall is that of the index's hits, on a file as Flickr8k's val."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small
from index_small import Counting

from benchmarks import search_quality
from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.errors import UserError
from openblip.index.image_index import ImageIndex


@pytest.fixture
def val(tmp_path: Path) -> Path:
    """Six images with two captions each, one a sign; a copy of one image; the form of Flickr8k's val."""
    folder = tmp_path / "flickr"
    folder.mkdir()
    lines = []
    for number in range(7):
        small.make_image(min(number, 5), side=40).save(folder / f"{number}.jpg", quality=95)
        captions = [small.TEXTS[number % 8], "+two dogs" if number else "qqqq"]
        lines.append(json.dumps({"image": f"{number}.jpg", "captions": captions, "image_id": number}) + "\n")
    (folder / "val.jsonl").write_text("".join(lines))
    return folder / "val.jsonl"


def test_recall_is_that_of_the_hits(val: Path, tmp_path: Path, predictor: Counting) -> None:
    index = tmp_path / "I"
    result = search_quality.measure(predictor, [str(val)], index, queries=99, rerank=7)
    assert (result["images"], result["captions"], result["queries"]) == (7, 14, 13)
    assert result["unread"] == 1
    alone, ranked = result["rows"]
    assert [row["case"] for row in (alone, ranked)] == ["ITC alone", "re-ranked by ITM"]
    with ImageIndex.open(index, predictor) as opened:
        for row, rerank in ((alone, 0), (ranked, 7)):
            found = dict.fromkeys(search_quality.RANKS, 0)
            for number in range(7):
                for text in (small.TEXTS[number % 8], "two dogs")[: 2 if number else 1]:
                    names = [Path(h.path).stem for h in opened.search(text=text, count=10, rerank=rerank)]
                    same = {"5", "6"} if number >= 5 else {str(number)}  # of one content
                    for rank in found:
                        found[rank] += bool(same & set(names[:rank]))
            for rank, hits in found.items():
                assert row[f"recall_at_{rank}"] == pytest.approx(hits / 13, abs=1e-4)
            assert row["query_p50_ms"] > 0
    assert ranked["query_mean_ms_without_features"] > 0
    assert alone["recall_at_1"] <= alone["recall_at_5"] <= alone["recall_at_10"]


def test_the_command_gives_json_and_draws_the_same_queries(
    val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m", StoredModel(small.model(), small.tokenizer()))
    how = ["--model", str(tmp_path / "m"), "--device", "cpu", "--dtype", "float32", "--index", str(tmp_path / "I")]
    told = []
    for _ in range(2):
        out = tmp_path / "r.json"
        code = search_quality.main([str(val), *how, "--queries", "5", "--rerank", "4", "--out", str(out)])
        assert code == 0
        told.append(json.loads(capsys.readouterr().out))
        assert json.loads(out.read_text()) == told[-1]
    assert told[0]["queries"] == 5
    names = [name for name in told[0]["rows"][0] if name.startswith("recall")]
    assert [[row[n] for n in names] for row in told[0]["rows"]] == [
        [row[n] for n in names] for row in told[1]["rows"]
    ]


def test_mistakes(val: Path, tmp_path: Path, blip: Counting, capsys: pytest.CaptureFixture[str]) -> None:
    (val.parent / "only").mkdir()
    small.make_image(1).save(val.parent / "only" / "1.png")
    with pytest.raises(UserError, match="has no captions to search for"):
        search_quality.measure(blip, [str(val.parent / "only")], tmp_path / "I", queries=1, rerank=1)
    assert search_quality.main([str(val), "--model", "m", "--queries", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err
