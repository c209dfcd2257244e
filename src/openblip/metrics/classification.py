"""Accuracy of classes: the share of images whose class comes first, or among the first five, whole and by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Accuracy"]


@dataclass
class Accuracy:
    """Counts images as they come.

    Args:
        classes: all that there are; with five or fewer top-5 says nothing and is left out.
    """

    classes: Sequence[str]
    _counts: dict[str, list[int]] = field(default_factory=dict)
    """of each true class: images, right at first, right among five"""

    def add(self, truth: str, ranked: Sequence[str]) -> None:
        """Count an image of class `truth` whose classes were found to be `ranked`, the likeliest first."""
        counts = self._counts.setdefault(truth, [0, 0, 0])
        counts[0] += 1
        counts[1] += truth in ranked[:1]
        counts[2] += truth in ranked[:5]

    @classmethod
    def of(cls, parts: Sequence[Accuracy]) -> Accuracy:
        """Of parts that count different images of the same classes together."""
        whole = cls(parts[0].classes)
        for part in parts:
            for truth, counts in part._counts.items():
                before = whole._counts.get(truth, [0, 0, 0])
                whole._counts[truth] = [a + b for a, b in zip(before, counts, strict=True)]
        return whole

    @property
    def images(self) -> int:
        """How many were counted."""
        return sum(counts[0] for counts in self._counts.values())

    def figures(self) -> dict[str, Any]:
        """ "images", "top1", "top5" where it says something, "mean_per_class" (of top-1, over classes with images),
        and "per_class" with each class's images and top-1."""
        images = max(self.images, 1)
        firsts, fives = (sum(counts[place] for counts in self._counts.values()) for place in (1, 2))
        shown = {
            name: {"images": self._counts[name][0], "top1": self._counts[name][1] / self._counts[name][0]}
            for name in self.classes
            if name in self._counts
        }
        return {
            "images": self.images,
            "top1": firsts / images,
            **({"top5": fives / images} if len(self.classes) > 5 else {}),
            "mean_per_class": sum(one["top1"] for one in shown.values()) / max(len(shown), 1),
            "per_class": shown,
        }
