"""Results of experiments to be quoted in docs: the form that is stored, and a page's tables in Markdown.

Pages hold these tables word for word, and tests compare (docs/capfilt.md, docs/blip2-proof.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.core.files import write_json
from openblip.report import Report, Table, markdown

__all__ = ["TOWER", "store", "tables"]

TOWER = "runs/demo/captioner/model"
"""stands for the folder of the tower, which is another one on another machine"""


def store(result: dict[str, Any], file: Path) -> None:
    """Write a result to `file`, without the folder of the tower."""
    config = result.get("config", {})
    if config.get("tower"):
        result = {**result, "config": {**config, "tower": TOWER}}
    write_json(file, result)


def tables(report: Report) -> list[list[str]]:
    """All its tables in Markdown, by lines."""
    blocks = [block for section in report.sections for block in section.blocks]
    return [markdown(block) for block in blocks if isinstance(block, Table)]
