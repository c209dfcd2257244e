"""What `openblip experiments` and `openblip compare` found: stored, and as the tables of docs/.

    python -m benchmarks.proofs runs/experiments/capfilt/results.json --as capfilt    # stores it, prints the tables

Pages hold these tables word for word, and tests compare (docs/capfilt.md, docs/blip2-proof.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openblip.core.files import write_json
from openblip.experiments.blip2_page import blip2_page
from openblip.experiments.compare_page import compare_page
from openblip.experiments.page import capfilt_page
from openblip.report import Report, Table, markdown

__all__ = ["PAGES", "load", "page_of", "tables"]

RESULTS = Path(__file__).parent / "results"
PAGES: dict[str, Callable[[dict[str, Any]], Report]] = {
    "capfilt": capfilt_page,
    "blip2": blip2_page,
    "compare": compare_page,
}
TOWER = "runs/demo/captioner/model"
"""stands for the folder of the tower, which lies elsewhere on another machine"""


def load(name: str) -> dict[str, Any]:
    """The stored result of one of `PAGES`."""
    stored: dict[str, Any] = json.loads((RESULTS / f"experiment-{name}.json").read_text(encoding="utf-8"))
    return stored


def page_of(name: str) -> Report:
    """The report that the stored result of one of `PAGES` gives."""
    return PAGES[name](load(name))


def tables(report: Report) -> list[list[str]]:
    """All its tables in Markdown, by lines."""
    blocks = [block for section in report.sections for block in section.blocks]
    return [markdown(block) for block in blocks if isinstance(block, Table)]


def main(arguments: list[str] | None = None) -> None:
    """Store a result and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proofs", description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="results.json or compare-results.json of an experiment's folder")
    parser.add_argument("--as", dest="name", choices=PAGES, required=True)
    options = parser.parse_args(arguments)
    result = json.loads(options.result.read_text(encoding="utf-8"))
    if result["config"].get("tower"):
        result["config"]["tower"] = TOWER
    write_json(RESULTS / f"experiment-{options.name}.json", result)
    report = page_of(options.name)
    print("\n".join(f"- {line}" for line in report.summary))
    print("\n\n".join("\n".join(lines) for lines in tables(report)))


if __name__ == "__main__":
    main()
