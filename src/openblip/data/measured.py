"""What a measure notes about its data: how many images it used, and what it had to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.core.sharing import joint
from openblip.data.sample import BrokenSample, SkipLog

__all__ = ["Measured"]


class Measured(SkipLog):
    """What a measure has used and left out, each sample once however often the data are read for it.

    A measure never puts another sample in the place of a broken one: its figures would count some images twice.

    Args:
        path: as of `SkipLog`.

    Attributes:
        num_images: that were used, in the last pass over the data.
        left_out: key, cause, detail and source of each sample or row that could not be used, in order.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        super().__init__(path)
        self.num_images = 0
        self.left_out: list[dict[str, str]] = []
        self._seen: set[tuple[str, str, str]] = set()

    def add(self, broken: BrokenSample, **where: Any) -> None:
        """Note a broken sample, unless an earlier pass has."""
        source = str(where.get("source", ""))
        identity = (source, broken.key, broken.cause)
        if identity in self._seen:
            return
        self._seen.add(identity)
        record = {"key": broken.key, "cause": broken.cause, "detail": broken.detail, "source": source}
        self.left_out.append(record)
        super().add(broken, source=source, use="validation")

    def join(self) -> None:
        """Count what all ranks have used and left out, where they share the data; every rank must call."""
        self.num_images = sum(joint([self.num_images]))
        for one in joint(self.left_out):
            self.add(BrokenSample(one["cause"], one["key"], one["detail"]), source=one["source"])

    @property
    def metrics(self) -> dict[str, float]:
        """ "num_left_out" where anything was, to stand beside the measure's figures."""
        return {"num_left_out": float(len(self.left_out))} if self.left_out else {}
