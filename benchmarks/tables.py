"""Stored results as the tables of the docs: a page holds these lines word for word, and a test compares.

python -m benchmarks.tables match caption rank
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openblip.report import Column, Table, markdown

__all__ = ["lines", "text_table"]

RESULTS = Path(__file__).parent / "results"
DTYPES = ("float32", "bfloat16", "default")
_HEAD = ("what", "dtype", "ours", "transformers", "times faster", "peak memory, ours and theirs")


def lines(names: Sequence[str], machine: str) -> list[str]:
    """A table of the results of `names` that were stored for a machine (`harness.machine_slug`)."""
    rows: list[tuple[str, ...]] = []
    for name in names:
        path = RESULTS / f"{name}-{machine}.json"
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            rows += [
                _row(name, row)
                for row in sorted(result["rows"], key=lambda row: (row["case"], DTYPES.index(row["dtype"])))
            ]
    return text_table(_HEAD, rows, left=2)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table of texts in Markdown; the columns after the first `left` are aligned at the right."""
    columns = [Column(name=name, align="left" if i < left else "right") for i, name in enumerate(head)]
    return markdown(Table(columns=columns, rows=rows))


def _row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    memory = f"{row['ours_peak_mb']:,} MB, {row['peer_peak_mb']:,} MB"
    ratio = f"{row['ratio']:.2f}"
    return (f"{name}: {row['case']}", row["dtype"], _time(row["ours_s"]), _time(row["peer_s"]), ratio, memory)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    from benchmarks.harness import machine_slug

    print("\n".join(lines(sys.argv[1:], machine_slug())))
