"""Charts as SVG: lines with their names and last values at their ends, chance and target, values on hover.

The elements are written directly instead of by a plotting library: a few kilobytes each, no extra to install, and
the classes of templates/curves.css for colours, so that one drawing serves the light page, the dark page and a file
of its own (`figures`). ElementTree escapes every text and attribute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
from markupsafe import Markup

from openblip.report.content import Chart, Histogram, Series
from openblip.report.numbers import spell, spell_short, ticks

__all__ = ["NUM_COLORS", "chart_svg", "draw", "histogram_svg", "smoothed", "thin"]

NUM_COLORS = 6
_WIDTH, _HEIGHT = 380, 230
_LEFT, _TOP, _BOTTOM = 40, 14, 34
_LINE_HEIGHT = 13
_CHAR = 6.6
"""width of a character of the labels, in the drawing's units"""
_MOST_POINTS = 240
_MOST_HOVERS = 24
_LONGEST_LABEL = 22


def smoothed(values: Sequence[float], share: float = 0.03) -> list[float]:
    """Return the values averaged with a bell-shaped weight over about `share` of them on either side."""
    array = np.asarray(values, dtype=np.float64)
    reach = max(1, round(share * len(array)))
    weights = np.exp(-0.5 * (np.arange(-2 * reach, 2 * reach + 1) / reach) ** 2)
    padded = np.convolve(array, weights, mode="full")[2 * reach : 2 * reach + len(array)]
    # Dividing by the weights that fell inside keeps the ends where they are.
    norm = np.convolve(np.ones_like(array), weights, mode="full")[2 * reach : 2 * reach + len(array)]
    return [float(value) for value in padded / norm]


class _Line:
    """A series made ready: its points apart from its gaps, thinned, and smoothed where it is noisy."""

    def __init__(self, series: Series, color: int) -> None:
        self.series, self.color = series, color % NUM_COLORS
        known = [
            (x, y)
            for x, y in zip(series.x, series.y, strict=True)
            if y is not None and math.isfinite(y) and math.isfinite(x)
        ]
        self.xs, self.ys = [x for x, _ in known], [y for _, y in known]
        self.noisy = series.role == "raw" and len(known) >= 12
        self.shown = smoothed(self.ys) if self.noisy else self.ys

    def runs(self) -> list[list[tuple[float, float]]]:
        """Stretches without a gap, thinned."""
        if self.noisy:
            return [thin(list(zip(self.xs, self.shown, strict=True)))]
        stretches: list[list[tuple[float, float]]] = [[]]
        for x, y in zip(self.series.x, self.series.y, strict=True):
            if y is None or not math.isfinite(y) or not math.isfinite(x):
                stretches.append([])
            else:
                stretches[-1].append((x, y))
        return [thin(stretch) for stretch in stretches if stretch]


def thin(points: list[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: the first, the last, and means of what is between."""
    if len(points) <= most:
        return points
    borders = np.linspace(0, len(points), most + 1).astype(int)
    means = [np.mean(points[low:high], axis=0).tolist() for low, high in pairwise(borders.tolist())]
    return [points[0], *((x, y) for x, y in means[1:-1]), points[-1]]


class _Axes:
    """From values to places in the drawing."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float], right: float) -> None:
        (self.x0, self.x1), (self.y0, self.y1) = x_range, y_range
        self.left, self.right, self.top, self.bottom = _LEFT, _WIDTH - right, _TOP, _HEIGHT - _BOTTOM

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1) * (self.bottom - self.top)

    def frame(self, parent: Element, x_label: str, x_unit: str, y_unit: str) -> None:
        """Add grid lines, axis, tick values and the x axis' name."""
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            _line(parent, "grid", self.left, self.right, y, y)
            _text(parent, self.left - 6, y + 4, spell_short(value, y_unit), anchor="end")
        for value, text in self._x_ticks(x_unit):
            _text(parent, self.x(value), self.bottom + 15, text, anchor="middle")
        _line(parent, "axis", self.left, self.right, self.bottom, self.bottom)
        _text(parent, (self.left + self.right) / 2, _HEIGHT - 4, x_label, anchor="middle")

    def _x_ticks(self, unit: str) -> list[tuple[float, str]]:
        """Round values and how they are written: as many as have room beside each other, at most about five."""
        for wanted in (5, 4, 3, 2, 1):
            found = [(value, spell_short(value, unit)) for value in ticks(self.x0, self.x1, wanted)]
            room = (self.right - self.left) / max(1, len(found))
            if all(_CHAR * (len(text) + 1) <= room for _, text in found):
                break
        return found

    def upright(self, parent: Element, kind: str, x: float) -> None:
        """Add a vertical line at the place `x`."""
        _line(parent, kind, x, x, self.top, self.bottom)


def _add(parent: Element, tag: str, kind: str = "", **attributes: float | str) -> Element:
    """Add an element of a CSS class; numbers are written with one decimal, "_" in names is "-"."""
    values = {"class": kind} if kind else {}
    for name, value in attributes.items():
        values[name.replace("_", "-")] = value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
    return SubElement(parent, tag, values)


def _line(parent: Element, kind: str, x1: float, x2: float, y1: float, y2: float) -> None:
    _add(parent, "line", kind, x1=x1, x2=x2, y1=y1, y2=y2)


def _text(parent: Element, x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Element:
    element = _add(parent, "text", kind, x=x, y=y)
    if anchor != "start":
        element.set("text-anchor", anchor)
    element.text = text
    return element


def _svg(title: str) -> Element:
    return Element("svg", {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "role": "img", "aria-label": title})


def draw(chart: Chart | Histogram) -> Markup:
    """Return the chart as HTML: an `<svg>` element, or a sentence where there is nothing to show."""
    svg = chart_svg(chart) if isinstance(chart, Chart) else histogram_svg(chart)
    if svg is None:
        what = "recorded" if isinstance(chart, Chart) else "counted"
        return Markup('<p class="muted">nothing was {}</p>').format(what)
    return Markup(tostring(svg, encoding="unicode"))


def chart_svg(chart: Chart, *, hovers: bool = True) -> Element | None:
    """Return the chart as an `<svg>` element, or None if no value was recorded.

    Args:
        hovers: whether the values are shown under the pointer.
    """
    lines = [_Line(series, i if series.color is None else series.color) for i, series in enumerate(chart.series)]
    lines = [line for line in lines if line.ys]
    if not lines:
        return None
    y_range = _y_range(chart, lines)
    xs = [x for line in lines for x in line.xs]
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    if 0 < x_range[0] < 0.15 * x_range[1]:
        x_range = (0.0, x_range[1])
    names = [_end_label(chart, line, alone=len(lines) == 1) for line in lines]
    axes = _Axes(x_range, y_range, 14 + _CHAR * max(len(name) for name in names))
    svg = _svg(chart.title)
    axes.frame(svg, chart.x_label, "", chart.unit)
    # The names of the levels are written over the curves, their lines lie under them.
    levels = _levels(chart, axes)
    for kind, y, *_ in levels:
        _line(svg, kind, axes.left, axes.right, y, y)
    for line in lines:
        _draw_line(svg, line, axes)
    for _, _, x, y, text, anchor in levels:
        _text(svg, x, y, text, "level", anchor)
    ends = [axes.y(min(max(line.shown[-1], axes.y0), axes.y1)) for line in lines]
    for line, name, at in zip(lines, names, _apart(ends, axes), strict=True):
        label = _text(svg, axes.right + 8, at + 4, "", f"name c{line.color}")
        hint = SubElement(label, "title")
        hint.text, hint.tail = line.series.name, name
    if hovers:
        _hovers(svg, chart, lines, axes)
    return svg


def _end_label(chart: Chart, line: _Line, *, alone: bool) -> str:
    value = spell(line.shown[-1], chart.unit)
    if alone:
        return value
    name = line.series.name
    name = name if len(name) <= _LONGEST_LABEL - 6 else name[: _LONGEST_LABEL - 7] + "…"
    return f"{name} {value}"


def _y_range(chart: Chart, lines: list[_Line]) -> tuple[float, float]:
    values: list[float] = []
    for line in lines:
        if line.noisy:  # a few wild steps must not flatten the rest
            values += [*line.shown, *np.quantile(line.ys, (0.02, 0.98)).tolist()]
        else:
            spread = line.series.spread if len(line.series.spread) == len(line.ys) else [0.0] * len(line.ys)
            values += [y + sign * s for y, s in zip(line.ys, spread, strict=True) for sign in (-1, 1)]
    values += [level for level in (chart.reference, chart.target) if level is not None]
    low, high = min(values), max(values)
    bounded = chart.unit == "fraction" and low >= 0
    near_zero = low >= 0 and (low < 0.4 * high or high == 0)
    low_edge = 0.0 if near_zero else low - 0.08 * ((high - low) or abs(low) or 1)
    high_edge = high + 0.08 * ((high - low_edge) or abs(high) or 1)
    if bounded:
        low_edge, high_edge = max(0.0, low_edge), min(high_edge, 1.0) if high <= 1 else high_edge
    return low_edge, high_edge if high_edge > low_edge else low_edge + 1


def _levels(chart: Chart, axes: _Axes) -> list[tuple[str, float, float, float, str, str]]:
    """Chance and target: kind and height of the line, then place, text and anchor of its name."""
    found = []
    for value, name, kind in (
        (chart.reference, chart.reference_name, "chance"),
        (chart.target, "target", "target"),
    ):
        if value is None:
            continue
        y = axes.y(value)
        above = y - 4 if y - 4 > axes.top + 8 else y + 12
        # The target is written at the left, where curves have not yet come up to it; chance at the right, where
        # they have left it.
        x, anchor = (axes.left + 4, "start") if kind == "target" else (axes.right - 2, "end")
        found.append((kind, y, x, above, f"{name} {spell(value, chart.unit)}", anchor))
    return found


def _path(points: Sequence[tuple[float, float]], axes: _Axes) -> str:
    clipped = [(axes.x(x), min(max(axes.y(y), axes.top - 8), axes.bottom)) for x, y in points]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in clipped)


def _draw_line(svg: Element, line: _Line, axes: _Axes) -> None:
    color = f"c{line.color}"
    if line.noisy:
        raw = thin(list(zip(line.xs, line.ys, strict=True)))
        _add(svg, "path", f"raw {color}", d=_path(raw, axes))
    spread = line.series.spread
    if not line.noisy and len(spread) == len(line.ys) and any(spread):
        upper = [(x, y + s) for x, y, s in zip(line.xs, line.ys, spread, strict=True)]
        lower = [(x, y - s) for x, y, s in zip(line.xs, line.ys, spread, strict=True)]
        _add(svg, "path", f"band {color}", d=f"{_path([*upper, *lower[::-1]], axes)}Z")
    role = "train" if line.series.role == "train" else "line"
    for stretch in line.runs():
        if len(stretch) > 1:
            _add(svg, "path", f"{role} {color}", d=_path(stretch, axes))
    if not line.noisy and line.series.role == "line":
        few = len(line.xs) <= 30
        for x, y in zip(line.xs, line.ys, strict=True) if few else [(line.xs[-1], line.ys[-1])]:
            _add(svg, "circle", color, r="2.6", cx=axes.x(x), cy=axes.y(y))


def _apart(ends: list[float], axes: _Axes) -> list[float]:
    """Heights for the labels: as near to the lines' ends as may be without touching each other."""
    order = sorted(range(len(ends)), key=ends.__getitem__)
    placed = [0.0] * len(ends)
    above = -math.inf
    for i in order:
        placed[i] = above = max(ends[i], above + _LINE_HEIGHT)
    below = max(axes.bottom + 4.0, axes.top + _LINE_HEIGHT * (len(ends) - 1))
    for i in reversed(order):
        placed[i] = below = min(placed[i], below)
        below -= _LINE_HEIGHT
    return placed


def _hovers(svg: Element, chart: Chart, lines: list[_Line], axes: _Axes) -> None:
    """Columns that show the values at their place while pointed at or touched; no script."""
    # The sparsest line with some points sets the places: evaluations are what one wants to read.
    evaluated = [line.xs for line in lines if not line.noisy and len(line.xs) > 1] or [line.xs for line in lines]
    places = sorted({x for xs in evaluated for x in xs})
    if len(places) > _MOST_HOVERS:
        places = [places[round(i * (len(places) - 1) / (_MOST_HOVERS - 1))] for i in range(_MOST_HOVERS)]
    for i, place in enumerate(places):
        low = axes.left if i == 0 else (axes.x(places[i - 1]) + axes.x(place)) / 2
        high = axes.right if i == len(places) - 1 else (axes.x(place) + axes.x(places[i + 1])) / 2
        rows = [(f"{chart.x_label} {spell(place)}", "")]
        for line in lines:
            nearest = min(range(len(line.xs)), key=lambda j, line=line: abs(line.xs[j] - place))  # type: ignore[misc]
            if abs(axes.x(line.xs[nearest]) - axes.x(place)) <= max(6.0, (high - low) / 2):
                value = spell(line.shown[nearest], chart.unit)
                rows.append((f"{line.series.name[:20]} {value}" if len(lines) > 1 else value, f"c{line.color}"))
        width = 12 + _CHAR * max(len(text) for text, _ in rows)
        x = axes.x(place)
        left = x + 8 if x + 8 + width < _WIDTH else max(2.0, x - 8 - width)
        group = _add(svg, "g", "hover")
        _add(group, "rect", x=low, y=axes.top, width=max(0.0, high - low), height=axes.bottom - axes.top)
        shown = _add(group, "g")
        axes.upright(shown, "", x)
        _add(shown, "rect", "tip", x=left, y=_TOP, width=width, height=7 + _LINE_HEIGHT * len(rows), rx=4)
        for j, (text, color) in enumerate(rows):
            _text(shown, left + 6, _TOP + 13 + _LINE_HEIGHT * j, text, color)


def histogram_svg(histogram: Histogram) -> Element | None:
    """Return the histogram as an `<svg>` element, an outlined area for each group; None if nothing was counted."""
    edges, groups = histogram.edges, histogram.groups
    assert all(len(counts) == len(edges) - 1 for counts in groups.values()), "one count for each bin"
    most = max((count for counts in groups.values() for count in counts), default=0)
    if most == 0:
        return None
    axes = _Axes((edges[0], edges[-1]), (0.0, most * 1.02), 12)
    axes.top += _LINE_HEIGHT  # the names stand above the bars
    svg = _svg(histogram.title)
    axes.frame(svg, histogram.x_label, histogram.unit, "")
    place = float(axes.left)
    for i, (name, counts) in enumerate(groups.items()):
        color = f"c{i % NUM_COLORS}"
        corners = [(edges[0], 0.0)]
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            corners += [(low, count), (high, count)]
        corners.append((edges[-1], 0.0))
        outline = _path(corners, axes)
        _add(svg, "path", f"band {color}", d=f"{outline}Z")
        _add(svg, "path", f"line {color}", d=outline)
        label = f"{name} ({sum(counts):,})"
        _text(svg, place, _TOP - 4, label, f"name {color}")
        place += _CHAR * (len(label) + 3)
    if histogram.threshold is not None:
        x = axes.x(histogram.threshold)
        text = f"{histogram.threshold_name} {spell(histogram.threshold, histogram.unit)}"
        at_left = x > (axes.left + axes.right) / 2
        axes.upright(svg, "target", x)
        _text(svg, x - 5 if at_left else x + 5, axes.top + 8, text, "level", "end" if at_left else "start")
    return svg
