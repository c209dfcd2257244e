"""Images to try on the page: scenes that our own code draws, with texts of which the first is true."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

from PIL import Image

from openblip.data.world.dataset import WorldSource

__all__ = ["Drawn", "draw_examples"]

_SHOWN = (0, 7, 13, 27, 41, 94)
"""of the split "test": other grounds, shapes and numbers of objects"""


@dataclass(frozen=True)
class Drawn:
    """An example."""

    png: bytes
    question: str
    texts: list[str]


@cache
def draw_examples(side: int = 256) -> tuple[Drawn, ...]:
    """Draw them, the same ones each time; once in a process."""
    world = WorldSource(split="test", size=side, captions_per_image=1, questions_per_image=1, disturb=0.0)
    samples = [world[index] for index in _SHOWN]
    drawn = []
    for number, sample in enumerate(samples):
        buffer = io.BytesIO()
        Image.fromarray(sample.image).save(buffer, "PNG")  # type: ignore[arg-type]
        others = [samples[(number + step) % len(samples)].texts[0] for step in (1, 2)]
        drawn.append(Drawn(buffer.getvalue(), sample.meta["questions"][0]["text"], [sample.texts[0], *others]))
    return tuple(drawn)
