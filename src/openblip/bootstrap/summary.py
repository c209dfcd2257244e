"""What a run came to, counted in one pass over its table in memory that does not grow with it.

summary = summarise("clean")
summary.texts["web"]["unmatched"]      # texts from the web that the filter dropped
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.bootstrap.places import Places
from openblip.bootstrap.run import load_output, load_run
from openblip.bootstrap.table import Row, Text, read_table
from openblip.core.config import to_dict
from openblip.core.files import read_marker
from openblip.data.sample import stable_id

__all__ = ["BINS", "KINDS", "Group", "Summary", "summarise"]

BINS = 20
"""of the histograms of scores"""
KINDS = ("rescued", "disagreement", "borderline", "kept", "dropped", "quarantined")
"""kinds of examples: only the written text stays; web and written disagree; a score near the threshold; ..."""
_LONGEST = 40
"""words; longer texts are counted together"""


class Distinct:
    """Counts different things among many, exactly up to a million, from a sample of them beyond.

    Only things whose hash is divisible by a growing power of two are kept, so the sample is even and repeats of one
    thing are in it together.
    """

    def __init__(self, most: int = 1_000_000) -> None:
        self._most, self._shift = most, 0
        self._counts: Counter[int] = Counter()

    def add(self, name: str) -> None:
        """Count a thing in."""
        number = stable_id(name)
        if number % (1 << self._shift):
            return
        self._counts[number] += 1
        while len(self._counts) > self._most:
            self._shift += 1
            self._counts = Counter({n: c for n, c in self._counts.items() if n % (1 << self._shift) == 0})

    @property
    def share(self) -> float:
        """Different things over all things; 1 where nothing is repeated."""
        total = sum(self._counts.values())
        return len(self._counts) / total if total else 1.0


@dataclass
class Group:
    """Texts of one origin, all or those that stay."""

    texts: int = 0
    words: int = 0
    lengths: list[int] = field(default_factory=lambda: [0] * (_LONGEST + 1))
    """texts by the number of their words"""
    distinct: Distinct = field(default_factory=Distinct)
    vocabulary: set[str] = field(default_factory=set)
    """different words, up to 100,000 of them"""

    def add(self, text: str) -> None:
        """Count a text in."""
        words = text.lower().split()
        self.texts += 1
        self.words += len(words)
        self.lengths[min(len(words), _LONGEST)] += 1
        self.distinct.add(" ".join(words))
        if len(self.vocabulary) < 100_000:
            self.vocabulary.update(words)


@dataclass
class Summary:
    """The metrics of a run."""

    samples: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    """of samples that could not be used"""
    texts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """for each origin, texts by the reason why they stay or go"""
    kept: Counter[str] = field(default_factory=Counter)
    """texts that stay, by origin"""
    agreement: Counter[str] = field(default_factory=Counter)
    """images by whose texts stay: "both", "web", "synthetic", "none" """
    itm: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0] * BINS))
    """for each origin, texts by ITM probability in even bins"""
    groups: dict[str, Group] = field(default_factory=lambda: defaultdict(Group))
    """"web", "web kept", "synthetic", "synthetic kept" """
    images: Distinct = field(default_factory=Distinct)
    seconds: Counter[str] = field(default_factory=Counter)
    """by stage, over all processes"""
    examples: dict[str, list[Row]] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    """what run.json says"""
    output: dict[str, Any] = field(default_factory=dict)
    """policy and layout of the decisions"""

    @property
    def threshold(self) -> float:
        """Of the policy."""
        return float(self.output["policy"]["threshold"])

    @property
    def good(self) -> int:
        """Samples whose images could be used."""
        return sum(self.agreement.values())


def summarise(run: Path | str, *, examples: int = 12) -> Summary:
    """Count a run.

    Args:
        examples: rows of each kind that are picked evenly from all.

    Raises:
        UserError: there is no run, or it is not complete.
    """
    places = Places(Path(run))
    _, described = load_run(run)
    summary = Summary(run=described, output=to_dict(load_output(run)))
    picked: dict[str, list[tuple[int, int, Row]]] = {kind: [] for kind in KINDS}
    number = 0
    for table in sorted(places.tables.glob("*.parquet")):
        for row in read_table(table):
            number += 1
            _add(summary, row)
            for kind in _kinds(row, None if summary.output["policy"]["name"] == "all" else summary.threshold):
                # The smallest hashes of the keys are an even sample, whatever the order.
                entry = (-stable_id(f"{kind} {row.key}"), number, row)
                heap = picked[kind]
                if len(heap) < examples:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)
    for marker in places.marker("").parent.glob("*.json"):
        summary.seconds.update((read_marker(marker, "stages") or {}).get("stages", {}))
    summary.examples = {kind: [row for _, _, row in sorted(heap, reverse=True)] for kind, heap in picked.items()}
    return summary


def _add(summary: Summary, row: Row) -> None:
    summary.samples += 1
    if row.status != "ok":
        summary.causes[row.status] += 1
        return
    summary.images.add(row.image_hash)
    origins = {text.origin for text in row.kept}
    summary.agreement["both" if len(origins) == 2 else next(iter(origins), "none")] += 1
    for text in row.texts:
        summary.texts[text.origin][text.reason] += 1
        summary.groups[text.origin].add(text.text)
        if text.kept:
            summary.kept[text.origin] += 1
            summary.groups[f"{text.origin} kept"].add(text.text)
        if text.itm is not None and not math.isnan(text.itm):
            summary.itm[text.origin][min(int(text.itm * BINS), BINS - 1)] += 1


def _kinds(row: Row, threshold: float | None) -> list[str]:
    """What a row is an example of; the first that fits tells most, so it stands alone.

    Args:
        threshold: None where no score decides.
    """
    if row.status != "ok":
        return ["quarantined"]
    if not row.texts:
        return []
    if threshold is None:
        return ["kept" if row.kept else "dropped"]
    by_origin: dict[str, list[Text]] = {
        origin: [text for text in row.texts if text.origin == origin] for origin in ("web", "synthetic")
    }
    if all(by_origin.values()):
        web, written = (any(text.kept for text in texts) for texts in by_origin.values())
        if web != written:
            return ["rescued" if written else "disagreement"]
    if any(text.itm is not None and abs(text.itm - threshold) < 0.1 for text in row.texts):
        return ["borderline"]
    return ["kept" if row.kept else "dropped"]
