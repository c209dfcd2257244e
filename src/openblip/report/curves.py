"""Charts as inline SVG: lines with their names and last values at their ends, chance and target, values on hover.

Drawn by hand rather than by a plotting library: a few kilobytes each, no extra to install, and the page's own
colours (CSS variables --s0 .. --s5, see `style`), so that one drawing serves the light and the dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

from openblip.report.content import Chart, Histogram, Series
from openblip.report.numbers import spell, spell_short, ticks

__all__ = ["NUM_COLORS", "draw_chart", "draw_histogram", "smoothed", "thin"]

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

    def frame(self, x_label: str, x_unit: str, y_unit: str) -> list[str]:
        parts = []
        for value in ticks(self.y0, self.y1):
            y = self.y(value)
            text = spell_short(value, y_unit)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for value in ticks(self.x0, self.x1, 5):
            text = spell_short(value, x_unit)
            parts.append(f'<text x="{self.x(value):.1f}" y="{self.bottom + 15}" text-anchor="middle">{text}</text>')
        middle, base = (self.left + self.right) / 2, self.bottom
        parts.append(f'<line class="axis" x1="{self.left}" x2="{self.right:.1f}" y1="{base}" y2="{base}"/>')
        parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
        return parts


def draw_chart(chart: Chart) -> str:
    """Return the chart as an `<svg>` element."""
    lines = [_Line(series, i if series.color is None else series.color) for i, series in enumerate(chart.series)]
    lines = [line for line in lines if line.ys]
    if not lines:
        return '<p class="muted">nothing was recorded</p>'
    y_range = _y_range(chart, lines)
    xs = [x for line in lines for x in line.xs]
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    if 0 < x_range[0] < 0.15 * x_range[1]:
        x_range = (0.0, x_range[1])
    names = [_end_label(chart, line, alone=len(lines) == 1) for line in lines]
    axes = _Axes(x_range, y_range, 14 + _CHAR * max(len(name) for name in names))
    rules, rule_names = _levels(chart, axes)
    parts = [*axes.frame(chart.x_label, "", chart.unit), *rules]
    for line in lines:
        parts += _draw_line(line, axes)
    parts += rule_names
    ends = [axes.y(min(max(line.shown[-1], axes.y0), axes.y1)) for line in lines]
    for line, name, at in zip(lines, names, _apart(ends, axes), strict=True):
        full = escape(line.series.name)
        parts.append(
            f'<text class="name c{line.color}" x="{axes.right + 8:.1f}" y="{at + 4:.1f}">'
            f"<title>{full}</title>{escape(name)}</text>"
        )
    parts += _hovers(chart, lines, axes)
    return _svg(chart.title, parts)


def _svg(title: str, parts: list[str]) -> str:
    label = escape(title, quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


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


def _levels(chart: Chart, axes: _Axes) -> tuple[list[str], list[str]]:
    """Lines for chance and target, and their names, which go over the curves."""
    rules, names = [], []
    levels = [(chart.reference, chart.reference_name, "chance"), (chart.target, "target", "target")]
    for value, name, kind in levels:
        if value is None:
            continue
        y = axes.y(value)
        above = y - 4 if y - 4 > axes.top + 8 else y + 12
        rules.append(f'<line class="{kind}" x1="{axes.left}" x2="{axes.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # The target is written at the left, where curves have not yet come up to it; chance at the right, where
        # they have left it.
        x, anchor = (axes.left + 4, "start") if kind == "target" else (axes.right - 2, "end")
        text = f"{escape(name)} {spell(value, chart.unit)}"
        names.append(f'<text class="level" x="{x:.1f}" y="{above:.1f}" text-anchor="{anchor}">{text}</text>')
    return rules, names


def _path(points: Sequence[tuple[float, float]], axes: _Axes) -> str:
    clipped = [(axes.x(x), min(max(axes.y(y), axes.top - 8), axes.bottom)) for x, y in points]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in clipped)


def _draw_line(line: _Line, axes: _Axes) -> list[str]:
    parts = []
    color = f"c{line.color}"
    if line.noisy:
        raw = thin(list(zip(line.xs, line.ys, strict=True)))
        parts.append(f'<path class="raw {color}" d="{_path(raw, axes)}"/>')
    spread = line.series.spread
    if not line.noisy and len(spread) == len(line.ys) and any(spread):
        upper = [(x, y + s) for x, y, s in zip(line.xs, line.ys, spread, strict=True)]
        lower = [(x, y - s) for x, y, s in zip(line.xs, line.ys, spread, strict=True)]
        parts.append(f'<path class="band {color}" d="{_path([*upper, *lower[::-1]], axes)}Z"/>')
    role = "train" if line.series.role == "train" else "line"
    paths = [_path(stretch, axes) for stretch in line.runs() if len(stretch) > 1]
    parts += [f'<path class="{role} {color}" d="{path}"/>' for path in paths]
    if not line.noisy and line.series.role == "line":
        few = len(line.xs) <= 30
        marked = list(zip(line.xs, line.ys, strict=True)) if few else [(line.xs[-1], line.ys[-1])]
        parts += [f'<circle class="{color}" r="2.6" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}"/>' for x, y in marked]
    return parts


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


def _hovers(chart: Chart, lines: list[_Line], axes: _Axes) -> list[str]:
    """Columns that show the values at their place while pointed at or touched; no script."""
    # The sparsest line with some points sets the places: evaluations are what one wants to read.
    evaluated = [line.xs for line in lines if not line.noisy and len(line.xs) > 1] or [line.xs for line in lines]
    places = sorted({x for xs in evaluated for x in xs})
    if len(places) > _MOST_HOVERS:
        places = [places[round(i * (len(places) - 1) / (_MOST_HOVERS - 1))] for i in range(_MOST_HOVERS)]
    parts = []
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
        texts = "".join(
            f'<text class="{color}" x="{left + 6:.1f}" y="{_TOP + 13 + _LINE_HEIGHT * j:.1f}">{escape(text)}</text>'
            for j, (text, color) in enumerate(rows)
        )
        size = f'width="{width:.0f}" height="{7 + _LINE_HEIGHT * len(rows)}"'
        box = f'<rect class="tip" x="{left:.1f}" y="{_TOP}" {size} rx="4"/>'
        parts.append(
            f'<g class="hover"><rect x="{low:.1f}" y="{axes.top}" width="{max(0.0, high - low):.1f}" '
            f'height="{axes.bottom - axes.top}"/><g><line x1="{x:.1f}" x2="{x:.1f}" y1="{axes.top}" '
            f'y2="{axes.bottom}"/>{box}{texts}</g></g>'
        )
    return parts


def draw_histogram(histogram: Histogram) -> str:
    """Return the histogram as an `<svg>` element: an outlined area for each group."""
    edges, groups = histogram.edges, histogram.groups
    assert all(len(counts) == len(edges) - 1 for counts in groups.values()), "one count for each bin"
    most = max((count for counts in groups.values() for count in counts), default=0)
    if most == 0:
        return '<p class="muted">nothing was counted</p>'
    axes = _Axes((edges[0], edges[-1]), (0.0, most * 1.02), 12)
    axes.top += _LINE_HEIGHT  # the names stand above the bars
    parts = axes.frame(histogram.x_label, histogram.unit, "")
    place = float(axes.left)
    for i, (name, counts) in enumerate(groups.items()):
        color = f"c{i % NUM_COLORS}"
        corners = [(edges[0], 0.0)]
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            corners += [(low, count), (high, count)]
        corners.append((edges[-1], 0.0))
        parts.append(f'<path class="band {color}" d="{_path(corners, axes)}Z"/>')
        parts.append(f'<path class="line {color}" d="{_path(corners, axes)}"/>')
        label = f"{name} ({sum(counts):,})"
        parts.append(f'<text class="name {color}" x="{place:.1f}" y="{_TOP - 4}">{escape(label)}</text>')
        place += _CHAR * (len(label) + 3)
    if histogram.threshold is not None:
        x = axes.x(histogram.threshold)
        text = f"{escape(histogram.threshold_name)} {spell(histogram.threshold, histogram.unit)}"
        at_left = x > (axes.left + axes.right) / 2
        where = f'x="{x - 5 if at_left else x + 5:.1f}" text-anchor="{"end" if at_left else "start"}"'
        parts.append(f'<line class="target" x1="{x:.1f}" x2="{x:.1f}" y1="{axes.top}" y2="{axes.bottom}"/>')
        parts.append(f'<text class="level" {where} y="{axes.top + 8}">{text}</text>')
    return _svg(histogram.title, parts)
