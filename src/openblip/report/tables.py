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
"""characters of the first column that stay on a line of a terminal beside texts"""
_FOLDED = 28
"""characters that the first column keeps beside figures, however many these are"""
_FRAME = 3
"""characters between the texts of two columns"""


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


def terminal(table: Table, width: int | None = None) -> RenderableType:
    """Return the table for a terminal; texts are shown as they are, not read as markup.

    A table of figures that is too wide for it stands in several parts, one below the other, each with the first
    column: figures are never cut.

    Args:
        width: of the terminal in characters; None is that of standard output.
    """
    from rich.console import Console, Group
    from rich.text import Text

    columns = lay_out(table)
    parts = [list(range(len(columns)))]
    if not any(column.left for column in columns[1:]):
        parts = _parts(columns, Console().width if width is None else width)
    shown: list[RenderableType] = [_terminal_part(columns, part, whole=len(parts) == 1) for part in parts]
    # Not the table's own title, which is no wider than the table.
    return Group(*([Text(table.title, style="italic")] if table.title else []), *shown)


def _parts(columns: Sequence[ShownColumn], width: int) -> list[list[int]]:
    """The columns that stand beside each other, the first of all in each part."""
    widths = [_least_width(column) for column in columns]
    first = min(max(map(len, (columns[0].name, *map(str, columns[0].cells)))), _FOLDED)
    room = width - first - _FRAME - 1
    few = _packed(widths, room, len(widths))
    even = _packed(widths, room, -(-(len(widths) - 1) // len(few)))  # no part with a single column left over
    return even if len(even) == len(few) else few


def _packed(widths: Sequence[int], room: int, most: int) -> list[list[int]]:
    """Columns in their order, at most `most` beside the first in a part and no more than `room` holds."""
    parts, left = [[0]], room
    for i, own in enumerate(widths[1:], 1):
        if len(parts[-1]) > 1 and (own + _FRAME > left or len(parts[-1]) > most):
            parts.append([0])
            left = room
        parts[-1].append(i)
        left -= own + _FRAME
    return parts


def _least_width(column: ShownColumn) -> int:
    """Characters that a column of figures needs: its cells whole, the name broken between words."""
    return max(map(len, (*column.name.split(), *map(str, column.cells))), default=0)


def _terminal_part(columns: Sequence[ShownColumn], part: Sequence[int], *, whole: bool) -> RenderableType:
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable()
    for i in part:
        column = columns[i]
        # Long names, as the paths of models are, give way to the other columns.
        fits = i == 0 and max(map(len, (column.name, *map(str, column.cells)))) <= _NAME_WIDTH
        justify: Literal["left", "right"] = "left" if column.left or i == 0 else "right"
        least = None if i == 0 or column.left else _least_width(column)
        keeps = fits and whole and any(other.left for other in columns[1:])
        shown.add_column(Text(column.name), justify=justify, no_wrap=keeps, overflow="fold", min_width=least)
    for row in range(len(columns[0].cells)):
        cells = [str(columns[i].cells[row]) for i in part]
        # A row without a figure in this part says nothing in it.
        if whole or any(character.isdigit() for cell in cells[1:] for character in cell):
            shown.add_row(*map(Text, cells))
    return shown


def print_table(table: Table) -> None:
    """Print the table."""
    from rich.console import Console

    Console().print(terminal(table))
