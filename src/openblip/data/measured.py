"""What a measure notes about its data: how many images it used, and what it had to leave out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openblip.core.sharing import joint
from openblip.data.sample import BrokenSample, SkipLog

__all__ = ["Measured"]

_OF_TEXTS = re.compile(r"t2i_recall(_itm)?@\d+|accuracy_(generated|ranked)")
"""Metrics that are a mean over texts."""


class Measured(SkipLog):
    """What a measure has used and left out, each sample once however often the data are read for it.

    A measure never puts another sample in the place of a broken one: its figures would count some images twice.

    Args:
        path: as of `SkipLog`.

    Attributes:
        num_images: that were used, in the last pass over the data.
        num_texts: likewise.
        num_missed: texts of videos that cannot be read.
        left_out: key, cause, detail and source of each sample or row that could not be used, in order.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        super().__init__(path)
        self.num_images = self.num_texts = self.num_missed = 0
        self.left_out: list[dict[str, str]] = []
        self._seen: set[tuple[str, str, str]] = set()

    def add(self, broken: BrokenSample, **where: Any) -> None:
        """Note a broken sample, unless an earlier pass has."""
        source = str(where.get("source", ""))
        identity = (source, broken.key, broken.cause)
        if identity in self._seen:
            return
        self._seen.add(identity)
        self.num_missed += broken.num_texts
        record = {"key": broken.key, "cause": broken.cause, "detail": broken.detail, "source": source}
        self.left_out.append(record)
        super().add(broken, source=source, use="validation")

    def join(self) -> None:
        """Count what all ranks have used and left out, where they share the data; every rank must call."""
        self.num_images, self.num_texts = (sum(joint([count])) for count in (self.num_images, self.num_texts))
        missed = sum(joint([self.num_missed]))
        for one in joint(self.left_out):
            self.add(BrokenSample(one["cause"], one["key"], one["detail"]), source=one["source"])
        self.num_missed = missed

    def complete(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """A measure's figures with "num_left_out" where anything was left out.

        Where videos could not be read, also the shares of texts that were found or answered rightly with those of
        these videos as missed, as video benchmarks count them: "t2i_recall@1, unread missed".
        """
        if not self.left_out:
            return dict(metrics)
        share = self.num_texts / max(self.num_texts + self.num_missed, 1)
        shares = {name: value for name, value in metrics.items() if _OF_TEXTS.fullmatch(name)}
        missed = {f"{name}, unread missed": share * value for name, value in shares.items()}
        return {**metrics, **(missed if self.num_missed else {}), "num_left_out": float(len(self.left_out))}
