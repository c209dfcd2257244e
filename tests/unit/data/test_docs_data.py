"""docs/data.md: its examples are read, it names every setting and cause, and its figures are those measured."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from make_data import encoded, make_image

from openblip.data.cards.table import markdown_tables
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources import open_source

REPO = Path(__file__).resolve().parents[3]
PAGE = (REPO / "docs" / "data.md").read_text(encoding="utf-8")
RESULT = REPO / "benchmarks" / "results" / "loader-amd-epyc-2-cores.json"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, "" for those without one."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def test_every_setting_is_named() -> None:
    fields = {field.name for field in dataclasses.fields(SourceConfig)} - {"path"}
    assert {name for name in fields if f"`{name}" not in PAGE} == set()


def test_its_tables_of_datasets_are_those_of_the_cards() -> None:
    """To renew them, put what `markdown_tables` gives between the marks."""
    (tables,) = re.findall(r"<!-- datasets -->\n(.*?)<!-- end -->", PAGE, flags=re.DOTALL)
    assert tables == markdown_tables()


def test_every_cause_is_named() -> None:
    causes = re.findall(r'"([a-z-]+)"', BrokenSample.__doc__ or "")
    assert len(causes) == 11
    assert [cause for cause in causes if f"| `{cause}` |" not in PAGE] == []


def test_settings_of_its_commands_are_known() -> None:
    specs = [spec for block in blocks("") for spec in re.findall(r'"([^"\n]+\?[^"\n]+)"', block)]
    assert len(specs) >= 3
    assert all(parse_spec(spec) != SourceConfig(path=spec) for spec in specs)


def test_its_captions_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for number in (1, 2):
        (tmp_path / "photos" / f"000{number}.jpg").write_bytes(encoded(make_image(number), "JPEG"))
    jsonl = next(block for block in blocks("json") if '"caption": "a dog on a beach"' in block)
    (tmp_path / "captions.jsonl").write_text(jsonl)
    source = open_source(str(tmp_path / "captions.jsonl"))
    assert [source[i].texts for i in range(2)] == [("a dog on a beach",), ("two birds", "birds on a wire")]
    table = next(block for block in blocks("") if block.startswith("image,caption"))
    (tmp_path / "captions.csv").write_text(table)
    assert open_source(str(tmp_path / "captions.csv"))[0].texts == ("a dog, on a beach",)
    (tmp_path / "captions.jsonl").write_text('{"image": "photos/0001.jpg", "alt": "a dog"}\n')
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "docs/data.md", "exec"), names)
    assert names["sample"].texts == ("a dog",)  # type: ignore[attr-defined]


def test_its_figures_are_those_measured() -> None:
    result = json.loads(RESULT.read_text())
    rows = {row["case"]: row for row in result["rows"]}
    quoted = re.findall(r"^\| ([a-z -]+, \d workers?) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, flags=re.MULTILINE)
    assert [case for case, _, _ in quoted] == list(rows)
    for case, ours, peer in quoted:
        assert (int(ours.replace(",", "")), int(peer.replace(",", ""))) == (
            rows[case]["ours_images_s"],
            rows[case]["peer_images_s"],
        )
        assert rows[case]["outputs_agree"]
        if "2 workers" in case:
            assert rows[case]["ours_images_s"] >= result["target_images_s"]
    cpu = result["cpu_ms_per_image"]
    assert f"{cpu['evaluation']} ms" in PAGE
    assert f"{cpu['pre-training']} ms" in PAGE
    assert f"{result['image_kb']} KB" in PAGE
