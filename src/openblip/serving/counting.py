"""What a service has done, as Prometheus reads it: its text format, version 0.0.4."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import accumulate

from openblip.serving.engine import Counts

__all__ = ["Requests", "exposition"]

_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""seconds, of the histogram's buckets"""


class Requests:
    """Requests that were answered, by endpoint."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, int]] = Counter()
        """by path and status"""
        self.histogram: dict[str, list[int]] = {}
        """by path: answers within each bound, and above the last"""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """in all, by path"""
        self.in_hand = 0

    def count(self, path: str, status: int, seconds: float) -> None:
        """Take an answer into account."""
        self.answered[path, status] += 1
        self.histogram.setdefault(path, [0] * (len(_BOUNDS) + 1))[bisect_left(_BOUNDS, seconds)] += 1
        self.seconds[path] += seconds


def exposition(requests: Requests, engine: Counts, *, ready: bool) -> str:
    """All figures as text."""
    lines: list[str] = []

    def family(name: str, kind: str, meaning: str) -> str:
        full = f"openblip_{name}"
        lines.extend((f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"))
        return full

    name = family("requests_total", "counter", "Requests that were answered.")
    for (path, status), count in sorted(requests.answered.items()):
        lines.append(f'{name}{{path="{path}",status="{status}"}} {count}')
    name = family("request_seconds", "histogram", "Seconds from a request's arrival to its answer.")
    for path, counts in sorted(requests.histogram.items()):
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), accumulate(counts), strict=True):
            lines.append(f'{name}_bucket{{path="{path}",le="{bound}"}} {count}')
        lines.append(f'{name}_sum{{path="{path}"}} {requests.seconds[path]:.6f}')
        lines.append(f'{name}_count{{path="{path}"}} {sum(counts)}')
    for name, kind, meaning, value in (
        ("ready", "gauge", "1 while requests are taken.", int(ready)),
        ("requests_in_hand", "gauge", "Requests being read, waiting or computed.", requests.in_hand),
        ("work_waiting", "gauge", "Work in the queue of the models.", engine.waiting),
        ("batches_total", "counter", "Batches that were computed.", engine.batches),
        ("batched_total", "counter", "Work in these batches.", engine.batched),
        ("dropped_total", "counter", "Work that nobody waited for any more.", engine.dropped),
        ("images_encoded_total", "counter", "Images that went through a vision tower.", engine.encoded),
        ("images_remembered_total", "counter", "Images whose features were in the cache.", engine.remembered),
        ("cache_bytes", "gauge", "Bytes of image features in the cache.", engine.cache_bytes),
    ):
        lines.append(f"{family(name, kind, meaning)} {value}")
    return "\n".join(lines) + "\n"
