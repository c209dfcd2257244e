"""METEOR and SPICE: one sentence where Java or its programs are missing; equal to the program where they are."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from openblip.core.errors import MissingExtra, UserError
from openblip.metrics.java import check_java, java_scores

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package with the structure of pycocoevalcap whose METEOR counts captions; its folder."""
    spice = ModuleType("pycocoevalcap.spice.spice")
    spice.__file__ = str(tmp_path / "spice.py")
    meteor = ModuleType("pycocoevalcap.meteor.meteor")

    class Meteor:
        def compute_score(self, gts: dict[int, list[str]], res: dict[int, list[str]]) -> tuple[float, list[float]]:
            assert gts == {0: ["a dog", "it is"], 1: ["two cats"]}
            assert res == {0: ["a dog 's bone"], 1: ["cats"]}
            return 0.25, [0.5, 0.0]

    meteor.Meteor = Meteor  # type: ignore[attr-defined]
    meteor.subprocess = __import__("subprocess")  # type: ignore[attr-defined]
    for name in ("pycocoevalcap", "pycocoevalcap.spice", "pycocoevalcap.meteor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, spice.__name__, spice)
    monkeypatch.setitem(sys.modules, meteor.__name__, meteor)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    return tmp_path


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(MissingExtra, match=r"openblip\[java-metrics\]"):
        check_java(["METEOR"])
    check_java([])


def test_without_java_it_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"METEOR and SPICE run in Java.*default-jre-headless"):
        check_java(["METEOR", "SPICE"])


def test_spice_does_not_download_by_itself(package: Path) -> None:
    with pytest.raises(UserError, match="get_stanford_models"):
        check_java(["SPICE"])
    check_java(["METEOR"])
    (package / "lib").mkdir()
    (package / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    check_java(["SPICE"])


def test_the_program_reads_words(package: Path) -> None:
    found = java_scores(["A dog's bone.", "cats!"], [["a dog", "It is."], ["two cats"]], ["METEOR"])
    assert found == {"METEOR": 0.25}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pycocoevalcap") is None or shutil.which("java") is None, reason="no Java program")
def test_meteor_of_the_java_program() -> None:
    """What its own tokenizer and METEOR 1.5 gave for the first 60 captions."""
    found = java_scores(GOLDEN["captions"][:60], GOLDEN["references"][:60], ["METEOR"])
    assert found["METEOR"] == pytest.approx(0.32835640994392495)
