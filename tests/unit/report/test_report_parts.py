"""The parts of the page: images as data URIs, numbers and ticks, curves."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openblip.core.errors import UserError
from openblip.report import Chart, Histogram, PageImage, Series, page_image
from openblip.report.curves import draw, smoothed, thin
from openblip.report.numbers import spell, spell_score, spell_short, spell_spread, ticks


def decoded(shown: PageImage) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2])))


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


GRADIENT = np.stack(np.meshgrid(np.arange(64) * 4, np.arange(64) * 4), -1)[..., [0, 1, 0]].astype(np.uint8)


def test_a_drawn_image_keeps_every_pixel() -> None:
    shown = page_image(GRADIENT, alt="a gradient")
    assert (shown.width, shown.height, shown.alt) == (64, 64, "a gradient")
    assert np.array_equal(np.asarray(decoded(shown)), GRADIENT)


def test_a_large_image_is_reduced() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 900, 3), dtype=np.uint8))
    shown = page_image(noise, max_side=300)
    assert (shown.width, shown.height) == decoded(shown).size == (300, 100)
    assert shown.uri.startswith("data:image/jpeg")
    assert len(shown.uri) < 60_000


def test_small_files_are_taken_as_they_are(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(GRADIENT), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    for given in (data, tmp_path / "a.jpg", str(tmp_path / "a.jpg")):
        assert base64.b64decode(page_image(given).uri.partition(",")[2]) == data


def test_a_turned_photograph_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    shown = page_image(encoded(Image.fromarray(GRADIENT[:32]), "JPEG", exif=exif))
    assert (shown.width, shown.height) == (32, 64)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_kinds_of_images(mode: str) -> None:
    assert decoded(page_image(Image.fromarray(GRADIENT).convert(mode))).mode == "RGB"


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be shown"):
        page_image(b"this is text")
    with pytest.raises(UserError, match="cannot be read"):
        page_image(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4, "fraction", "40%"),
        (0.58, "fraction", "58%"),
        (0.46249, "fraction", "46.2%"),
        (0.99974, "fraction", "99.97%"),
        (0.0004, "fraction", "0.04%"),
        (0.005, "fraction", "0.5%"),
        (-0.05, "fraction", "-5%"),
        (75, "seconds", "1 min 15 s"),
        (720, "seconds", "12 min"),
        (59.97, "seconds", "1 min"),
        (3725, "seconds", "1 h 2 min"),
        (0.0314, "seconds", "31.4 ms"),
        (3.25, "seconds", "3.25 s"),
        (12345, "count", "12,345"),
        (0.000123, "", "1.23e-4"),
        (3e-4, "", "3e-4"),
        (2.3456, "", "2.35"),
        (0, "", "0"),
        (1234.5, "", "1234"),
        (412.0, "images/s", "412 images/s"),
        (None, "fraction", "\u2013"),
        (float("nan"), "", "\u2013"),
    ],
)
def test_numbers_are_spelled(value: float | None, unit: str, text: str) -> None:
    assert spell(value, unit).replace("\u2009", " ") == text


def test_spreads_scores_and_axes() -> None:
    assert spell_spread(0.0123, "fraction").replace("\u2009", " ") == "± 1.2"
    assert spell_spread(None, "fraction") == ""
    assert spell(0.5, "fraction", even=True) == "50.0%"
    assert [spell_score(p) for p in (0.584, 0.004, 0.9993)] == ["58%", "0.4%", "99.9%"]
    assert [spell_short(v) for v in (0, 0.25, 2500, 20_000, 2.5e6, 1e-4)] == [
        "0",
        "0.25",
        "2500",
        "20k",
        "2.5M",
        "1e-4",
    ]
    assert spell_short(0.25, "fraction") == "25%"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.93), (-3.2, 7), (1e-5, 3e-4), (100, 101), (0, 123_456)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * abs(high) <= tick <= high * (1 + 1e-9) for tick in found)
    assert len({spell_short(tick) for tick in found}) == len(found), "no two ticks read alike"


def test_ticks_of_nothing() -> None:
    assert ticks(2, 2) == [2]


def test_smoothing_keeps_a_constant_and_damps_noise() -> None:
    assert smoothed([3.0] * 40) == pytest.approx([3.0] * 40)
    noise = np.random.default_rng(0).normal(size=200)
    assert np.std(smoothed(noise.tolist())) < 0.5 * np.std(noise)


def test_thinning_keeps_the_ends_and_the_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    few = thin(points, 100)
    assert len(few) == 100
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert np.mean([y for _, y in few]) == pytest.approx(3, abs=0.1)
    assert thin(points[:100], 100) == points[:100]


def paths(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<path class="{kind} c\d" d="M([^"]*)"', svg)
    return [[tuple(map(float, point.split())) for point in path.rstrip("Z").split("L")] for path in found]  # type: ignore[misc]


def test_a_line_goes_through_its_values() -> None:
    svg = draw(Chart(title="t", series=[Series(name="a", x=[0, 1, 2], y=[0, 5, 10])], reference=5, target=10))
    (line,) = paths(svg, "line")
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y0 > y2, "up is less in SVG"
    chance = re.search(r'class="chance" x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)"', svg)
    assert chance is not None
    assert float(chance[1]) == pytest.approx(y1, abs=0.11)
    assert "target 10" in svg


def test_a_gap_breaks_the_line() -> None:
    svg = draw(Chart(title="t", series=[Series(name="a", x=[0, 1, 2, 3, 4], y=[0, 1, None, 3, 4])]))
    assert [len(line) for line in paths(svg, "line")] == [2, 2]


def test_labels_at_the_ends_do_not_touch() -> None:
    series = [Series(name=f"n{i}", x=[0, 1], y=[0, 1 + 0.001 * i]) for i in range(8)]
    svg = draw(Chart(title="t", series=series))
    heights = sorted(float(y) for y in re.findall(r'<text class="name c\d" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(heights) == 8
    assert min(np.diff(heights)) >= 12
    assert heights[-1] < 230


def test_one_wild_step_does_not_flatten_a_noisy_curve() -> None:
    steps = [float(i) for i in range(200)]
    values = [2.0 + 0.01 * (i % 3) for i in range(200)]
    values[100] = 2.5
    svg = draw(Chart(title="t", series=[Series(name="loss", x=steps, y=values, role="raw")]))
    ((_, *raw),) = paths(svg, "raw")
    calm = [y for _, y in raw[:90]]
    assert max(calm) - min(calm) > 20, "the small waves can still be seen"
    assert all(0 <= y <= 230 for _, y in raw), "the wild step is cut at the chart's border"


@pytest.mark.parametrize(
    "series",
    [[], [Series(name="a", x=[], y=[])], [Series(name="a", x=[1], y=[None])]],
)
def test_nothing_recorded(series: list[Series]) -> None:
    assert "nothing was recorded" in draw(Chart(title="t", series=series))


@pytest.mark.parametrize("y", [[0.0], [0.5, 0.5], [-3.0, -3.0], [1e-12, 2e-12], [1e30, 2e30]])
def test_flat_and_extreme_values_can_be_drawn(y: list[float | None]) -> None:
    svg = draw(Chart(title="t", series=[Series(name="a", x=[float(i) for i in range(len(y))], y=y)]))
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_histogram_has_the_height_of_its_counts() -> None:
    svg = draw(Histogram(title="t", edges=[0, 1, 2], groups={"a": [1, 4]}, threshold=1))
    (line,) = paths(svg, "line")
    base = line[0][1]
    assert (base - line[3][1]) == pytest.approx(4 * (base - line[1][1]), abs=0.5)
    assert "a (5)" in svg
    assert "nothing was counted" in draw(Histogram(title="t", edges=[0, 1], groups={"a": [0]}))
