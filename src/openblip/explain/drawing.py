"""Maps over the image as a PNG, a panel for each word; drawn by matplotlib (the extra "report")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from openblip.core.errors import UserError, require
from openblip.core.files import atomic_path
from openblip.explain.cam import WordMap

__all__ = ["draw_maps"]

_MOST_COLUMNS = 5
_INCHES = 2.4


def draw_maps(path: Path | str, image: Image.Image, maps: Sequence[WordMap], *, title: str = "") -> None:
    """Draw the image, the average of all maps over it where there are several, and a panel for each word.

    Every panel has a scale of its own, from nothing to its largest weight: it shows where, not how much.

    Raises:
        MissingExtra: matplotlib is not installed.
        UserError: there is no map, or `path` does not end in .png.
    """
    if not maps:
        raise UserError("there is no word to draw a map for")
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"maps are drawn as PNG: name the file {Path(path).with_suffix('.png')}")
    require("matplotlib", "report")
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    average = torch.stack([one.weights for one in maps]).mean(0)
    together = [("all words", average)] if len(maps) > 1 else []
    panels = [("image", None), *together, *((one.word, one.weights) for one in maps)]
    columns = _columns(len(panels))
    rows = math.ceil(len(panels) / columns)
    height = _INCHES * min(max(image.height / image.width, 0.4), 2.5)
    figure = Figure(figsize=(columns * _INCHES, rows * (height + 0.3) + 0.3), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize="medium")
    shown = image.copy()
    shown.thumbnail((640, 640))
    extent = (0, shown.width, shown.height, 0)
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_axis_off()
        if place >= len(panels):
            continue
        word, weights = panels[place]
        axes.imshow(shown, extent=extent)
        if weights is not None:
            # The image is squeezed into a square for the model; the map is stretched back with it.
            scaled = (weights / weights.max().clamp(min=1e-12)).numpy()
            axes.imshow(scaled, extent=extent, cmap="inferno", alpha=0.55, interpolation="bicubic", vmin=0, vmax=1)
        # A word is what it is: no "$" of it is taken for mathematics.
        axes.set_title(word.replace("$", r"\$"), fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _columns(panels: int) -> int:
    """As many as leave the fewest places of the last row empty; of equals those nearest to four."""
    if panels <= _MOST_COLUMNS:
        return panels
    return min(range(3, _MOST_COLUMNS + 1), key=lambda columns: (-panels % columns, abs(columns - 4)))
