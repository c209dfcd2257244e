"""One table, three ways to show it: in a page (templates/blocks/table.html), as Markdown and on a terminal.

print_table(Table(columns=[Column(name="measure"), Column(name="value")], rows=[["CIDEr", 1.2]]))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from openblip.report.content import Cell, Column, Table
from openblip.report.numbers import spell, spell_spread

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["lay_out", "markdown", "print_table", "terminal"]

_NAME_WIDTH = 46
"""characters of the first column that stay on a line of a terminal"""


@dataclass(frozen=True, kw_only=True)
class ShownCell:
    """A cell with its value, spread and remark as texts, "" where there is none."""

    value: float | str | None
    shown: str
    spread: str
    note: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.shown, self.spread, self.note) if part)


@dataclass(frozen=True, kw_only=True)
class ShownColumn:
    """A column with its cells."""

    name: str
    unit: str
    reference: float | None
    reference_name: str
    left: bool
    """aligned at the left, as texts are"""
    best: float | None
    """the value to mark; None marks none"""
    cells: list[ShownCell]


def lay_out(table: Table) -> list[ShownColumn]:
    """Return the table by columns, with every value spelled."""
    rows = [[cell if isinstance(cell, Cell) else Cell(value=cell) for cell in row] for row in table.rows]
    assert all(len(row) == len(table.columns) for row in rows), "as many cells as columns"
    return [_column(column, [row[i] for row in rows]) for i, column in enumerate(table.columns)]


def _column(column: Column, cells: Sequence[Cell]) -> ShownColumn:
    texts = any(isinstance(cell.value, str) for cell in cells)
    return ShownColumn(
        name=column.name,
        unit=column.unit,
        reference=column.reference,
        reference_name=column.reference_name,
        left=column.align == "left" or (texts and not column.align),
        best=_best(column, cells),
        cells=[
            ShownCell(
                value=cell.value,
                shown=cell.value if isinstance(cell.value, str) else spell(cell.value, column.unit, even=True),
                spread="" if isinstance(cell.value, str) else spell_spread(cell.spread, column.unit),
                note=cell.note,
            )
            for cell in cells
        ],
    )


def _best(column: Column, cells: Sequence[Cell]) -> float | None:
    values = [cell.value for cell in cells if isinstance(cell.value, float | int)]
    if not column.better or len(values) < 2 or min(values) == max(values):
        return None
    return max(values) if column.better == "higher" else min(values)


def markdown(table: Table) -> list[str]:
    """Return the lines of the table in Markdown; columns without a value are left out."""
    columns = [c for c in lay_out(table) if not c.cells or any(cell.value is not None for cell in c.cells)]
    rows = [[column.name for column in columns]]
    rows += [[str(column.cells[i]) for column in columns] for i in range(len(table.rows))]
    head, *body = [f"| {' | '.join(map(_in_markdown, row))} |" for row in rows]
    return [head, "|" + "".join("---|" if column.left else "---:|" for column in columns), *body]


def _in_markdown(text: str) -> str:
    """A cell stays one cell, whatever it holds."""
    return re.sub(r"[\r\n]+", " ", text.replace("|", r"\|"))


def terminal(table: Table) -> RenderableType:
    """Return the table for a terminal; texts are shown as they are, not read as markup."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable()
    columns = lay_out(table)
    for i, column in enumerate(columns):
        # Long names, as the paths of models are, give way to the other columns, whose numbers are never cut.
        whole = i == 0 and max(map(len, (column.name, *map(str, column.cells)))) <= _NAME_WIDTH
        justify: Literal["left", "right"] = "left" if column.left or i == 0 else "right"
        shown.add_column(Text(column.name), justify=justify, no_wrap=whole, overflow="fold")
    for i in range(len(table.rows)):
        shown.add_row(*(Text(str(column.cells[i])) for column in columns))
    # Not the table's own title, which is no wider than the table.
    return Group(Text(table.title, style="italic"), shown) if table.title else shown


def print_table(table: Table) -> None:
    """Print the table."""
    from rich.console import Console

    Console().print(terminal(table))
