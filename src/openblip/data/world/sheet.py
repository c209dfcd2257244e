"""A contact sheet of the world: images with a true caption and a web text each, as in docs/images/world.png.

python -m openblip.data.world.sheet docs/images/world.png
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from openblip.core.files import atomic_path
from openblip.data.world.dataset import WorldSource

__all__ = ["contact_sheet"]

_SIDE, _TEXT, _GAP = 132, 210, 12
_INK, _FAINT = (30, 30, 30), (95, 95, 95)
_KIND_INK = {
    "clean": (40, 120, 60),
    "other-image": (190, 60, 40),
    "half-true": (180, 100, 10),
    "advertising": (120, 70, 160),
}
_SHOWN = (0, 7, 9, 13, 21, 27, 32, 35, 41, 45, 94, 116)
"""Samples of the split "test" that show every noise kind, relation and ground between them."""


def contact_sheet(source: WorldSource, indices: Sequence[int], *, columns: int = 3) -> Image.Image:
    """Lay out samples of a source with text "both" and images of 132 pixels."""
    rows = -(-len(indices) // columns)
    width, height = columns * (_SIDE + _TEXT + _GAP) + _GAP, rows * (_SIDE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), (250, 250, 248))
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(14), ImageFont.load_default(11.5)
    for number, index in enumerate(indices):
        sample = source[index]
        x = _GAP + (number % columns) * (_SIDE + _TEXT + _GAP)
        y = _GAP + (number // columns) * (_SIDE + _GAP)
        sheet.paste(Image.fromarray(np.asarray(sample.image)), (x, y))
        pen.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), outline=(60, 60, 60))
        x, line = x + _SIDE + 9, y - 3
        web, kind = sample.texts[0], sample.meta["noise"][0]
        for text in textwrap.wrap(sample.texts[1], 29):
            pen.text((x, line), text, fill=_INK, font=font)
            line += 16
        line = max(line + 8, y + 80)
        pen.text((x, line), f"web text ({kind}):", fill=_KIND_INK[kind], font=small)
        for text in textwrap.wrap(web, 36):
            line += 13
            pen.text((x, line), text, fill=_FAINT, font=small)
    return sheet


def main(path: str) -> None:
    """Write the sheet of the documentation."""
    source = WorldSource(split="test", num_samples=200, size=_SIDE, text="both", captions_per_image=1)
    sheet = contact_sheet(source, _SHOWN).quantize(256, dither=Image.Dither.NONE)
    with atomic_path(Path(path)) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
