"""Results of experiments to be quoted in docs: the form that is stored, and a page's tables in Markdown.

Pages hold these tables word for word, and tests compare (docs/capfilt.md, docs/blip2-proof.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.core.files import write_json
from openblip.report.content import Cell, Column, Report, Table
from openblip.report.numbers import spell, spell_spread

__all__ = ["TOWER", "markdown", "store", "tables"]

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


def markdown(table: Table) -> list[str]:
    """A table in Markdown, its numbers spelled as in the report; columns without a value are left out."""
    rows = [[cell if isinstance(cell, Cell) else Cell(value=cell) for cell in row] for row in table.rows]
    columns = zip(table.columns, zip(*rows, strict=True), strict=True)
    told = [(column, cells) for column, cells in columns if any(cell.value is not None for cell in cells)]
    lines = [
        [column.name for column, _ in told],
        *zip(*([_spelled(cell, column) for cell in cells] for column, cells in told), strict=True),
    ]
    marks = ["---|" if any(isinstance(cell.value, str) for cell in cells) else "---:|" for _, cells in told]
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return [head, "|" + "".join(marks), *body]


def _spelled(cell: Cell, column: Column) -> str:
    if isinstance(cell.value, str):
        return cell.value
    return f"{spell(cell.value, column.unit, even=True)} {spell_spread(cell.spread, column.unit)}".strip()
