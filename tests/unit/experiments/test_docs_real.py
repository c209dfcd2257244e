"""docs/real-data.md: its figures, captions and settings are those of the stored results."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import RESULTS
from openblip.experiments.real.nlvr import SETTINGS as NLVR
from openblip.experiments.real.openstax import SETTINGS, STAGES
from openblip.experiments.real.openstax_filter import KINDS
from openblip.experiments.real.openstax_filter import SETTINGS as FILTER
from openblip.experiments.results import cell

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "real-data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S))
"""the page's parts; an experiment's is headed by its name"""
MEASURED = [name for name in SETTINGS if name in SECTIONS]


def stored(section: str) -> dict[str, Any]:
    """The result that a section of the page names."""
    names = set(re.findall(r"`benchmarks/results/([\w-]+\.json)`", section))
    assert len(names) == 1
    result: dict[str, Any] = json.loads((RESULTS / names.pop()).read_text(encoding="utf-8"))
    return result


@pytest.mark.parametrize("name", MEASURED)
def test_its_figures_are_those_measured(name: str) -> None:
    result = stored(SECTIONS[name])
    rows = re.findall(r"^\| `([^`]+)` \|((?: [^|]+ \|){4})$", SECTIONS[name], flags=re.MULTILINE)
    figures = [(measure, cells) for measure, cells in rows if measure in result["stages"]["before"]["test"]]
    assert len(figures) >= 20
    for measure, cells in figures:
        told = [text.strip() for text in cells.strip(" |").split("|")]
        assert told == [cell(result["stages"][stage]["test"].get(measure)) for stage in STAGES], measure


@pytest.mark.parametrize("name", MEASURED)
def test_it_was_run_as_it_is_described(name: str) -> None:
    result = stored(SECTIONS[name])
    assert result["name"] == name
    assert result["seeds"] == 3
    assert result["command"] in SECTIONS[name]
    assert result["settings"] == json.loads(json.dumps(dataclasses.asdict(SETTINGS[name])))
    assert all(len(result["stages"][stage]["steps"]) == 3 for stage in STAGES[1:])


@pytest.mark.parametrize("name", MEASURED)
def test_its_captions_are_those_written(name: str) -> None:
    captions = stored(SECTIONS[name])["captions"]
    records = {record["image"]: record for found in captions.values() for record in found}
    rows = re.findall(r"^\| `(images/[^`]+)` \| (.+) \| (.+) \| (.+) \|$", SECTIONS[name], flags=re.MULTILINE)
    for image, alt_text, beam, nucleus in rows:
        record = records[image]
        assert (record["alt_text"], record["beam"], record["nucleus"]) == (alt_text, beam, nucleus)
    assert len(rows) >= (5 if name == "openstax" else 0)


def test_its_chance_is_that_of_the_images() -> None:
    chance = stored(SECTIONS["openstax"])["chance"]
    rows = re.findall(r"^\| (recall@\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 3
    for name, plain, luck, book in rows:
        told = [chance[name + suffix] for suffix in ("", "_luck", "_knowing_the_book")]
        assert [plain, luck, book] == [f"{value:.4f}" for value in told]


def test_the_filters_figures_are_those_measured() -> None:
    section = SECTIONS["openstax-filter"]
    result = stored(section)
    assert (result["name"], result["seeds"]) == ("openstax-filter", 3)
    assert result["command"] in section
    assert result["settings"] == json.loads(json.dumps(dataclasses.asdict(FILTER["openstax-filter"])))
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]+) \|$", section, flags=re.MULTILINE)
    assert {name for name, _ in rows} >= {f"kept_{kind}_half" for kind in KINDS}
    for measure, told in rows:
        assert told == cell(result["test"][measure]), measure


def test_nlvrs_figures_are_those_measured() -> None:
    section = SECTIONS["nlvr"]
    result = stored(section)
    assert result["name"] == "nlvr"
    assert result["command"] in section
    assert result["settings"] == json.loads(json.dumps(dataclasses.asdict(NLVR["nlvr"])))
    assert all(len(stage["steps"]) == result["seeds"] for stage in result["stages"].values())
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|$", section, flags=re.MULTILINE)
    assert {name for name, _ in rows} >= {"accuracy", "standard_error", "consistency", "accuracy, another image"}
    for measure, told in rows:
        assert told == ", ".join(f"{value:.4f}" for value in result["test"][measure]["seeds"]), measure
    assert f"Always true is right in {result['guessing']['always true']:.2%}" in " ".join(section.split())
