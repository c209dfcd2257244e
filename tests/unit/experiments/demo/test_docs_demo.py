"""The README holds what the stored demos reached, word for word."""

from __future__ import annotations

from pathlib import Path

from benchmarks.demo import KINDS, lines, minutes, stored

README = Path(__file__).resolve().parents[4] / "README.md"


def test_the_readme_holds_what_the_demo_reached() -> None:
    demos = stored()
    assert demos.keys() <= KINDS.keys()
    assert "bfloat16" in demos
    table = lines(demos)
    assert len(table) > 8
    assert "\n".join(table) in README.read_text(encoding="utf-8")


def test_the_demo_keeps_its_time() -> None:
    for kind, demo in stored().items():
        assert minutes(demo) <= 1.15 * demo["minutes"], kind
        assert (demo["machine"]["capability"] == "AVX2") == (kind == "avx2")


def test_the_demo_of_the_image_is_stored() -> None:
    demo = stored()["bfloat16"]
    assert demo["minutes"] == 15
    test = demo["stages"]["measure"]["test"]
    said = f"{test['captioner_beam']['truth']:.0%} of the captions on its {test['images']} test images"
    assert said in " ".join(README.read_text(encoding="utf-8").split())
