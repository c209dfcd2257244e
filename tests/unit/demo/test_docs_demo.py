"""The README holds what the stored demos reached, word for word."""

from __future__ import annotations

from pathlib import Path

from benchmarks.demo import KINDS, lines, minutes, stored

README = Path(__file__).resolve().parents[3] / "README.md"


def test_the_readme_holds_what_the_demo_reached() -> None:
    demos = stored()
    assert list(demos) == list(KINDS)
    table = lines(demos)
    assert len(table) > 8
    assert "\n".join(table) in README.read_text(encoding="utf-8")


def test_the_demo_keeps_its_time_on_both_kinds_of_cpu() -> None:
    for kind, demo in stored().items():
        assert demo["minutes"] == 15, kind
        assert minutes(demo) <= 1.15 * demo["minutes"], kind
    old = stored()["avx2"]["machine"]["capability"]
    assert old == "AVX2"
