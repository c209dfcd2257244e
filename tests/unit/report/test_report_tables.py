"""One table in a page, as Markdown and on a terminal: the same values, and texts that stay texts."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from openblip.report import Cell, Column, Report, Section, Table, markdown, print_table, render, terminal


def lines_of(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal(table))
    return [line.strip() for line in capture.get().splitlines()]


def test_a_table_in_markdown() -> None:
    table = Table(
        columns=[Column(name=""), Column(name="share", unit="fraction"), Column(name="nothing"), Column(name="n")],
        rows=[["one", Cell(value=0.5, spread=0.012), None, 2.5], ["two", 0.25, None, Cell(value=None)]],
    )
    assert markdown(table) == [
        "|  | share | n |",
        "|---|---:|---:|",
        "| one | 50.0% ±\u20091.2 | 2.5 |",
        "| two | 25.0% | \u2013 |",
    ]


def test_alignment_can_be_set() -> None:
    columns = [Column(name="a"), Column(name="b", align="right"), Column(name="c", align="left")]
    assert markdown(Table(columns=columns, rows=[["x", "1 s", 2]]))[1] == "|---|---:|---|"
    html = render(
        Report(title="t", sections=[Section(title="s", blocks=[Table(columns=columns, rows=[["x", "1 s", 2]])])])
    )
    assert '<td class="words">x</td><td>1 s</td><td class="words">2</td>' in html


def test_a_cell_of_markdown_stays_one_cell() -> None:
    table = Table(columns=[Column(name="a|b")], rows=[["c|d\ne"], [Cell(value="f", note="remark")]])
    assert markdown(table) == ["| a\\|b |", "|---|", "| c\\|d e |", "| f remark |"]


def test_a_terminal_shows_the_same_values(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(
        title="Measures",
        columns=[Column(name="measure"), Column(name="value", unit="fraction")],
        rows=[["recall", Cell(value=0.5, spread=0.012)], ["accuracy", None]],
    )
    lines = lines_of(table)
    assert lines[0] == "Measures"
    assert [line.strip("│┃ ").replace("\u2009", " ") for line in (lines[2], lines[4], lines[5])] == [
        "measure  ┃       value",
        "recall   │ 50.0% ± 1.2",
        "accuracy │           \u2013",
    ]
    print_table(table)
    assert "50.0%" in capsys.readouterr().out


def test_texts_on_a_terminal_are_not_markup() -> None:
    table = Table(title="[/x]", columns=[Column(name="[bold]")], rows=[["[/red] photo[1].jpg"]])
    message = "\n".join(lines_of(table))
    for text in ("[/x]", "[bold]", "[/red] photo[1].jpg"):
        assert text in message


def test_a_terminal_breaks_long_names_and_cuts_no_number() -> None:
    model = "/somewhere/long/of/someone/runs/demo/captioner/model"
    names = ("model", "i2t_recall@1", "t2i_recall@1", "samples")
    cells = [Cell(value=0.5, note="(-40.4)"), Cell(value=1.0), Cell(value="published")]
    table = Table(columns=[Column(name=name, unit="fraction") for name in names], rows=[[model, *cells]])
    rows = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines_of(table)]
    assert tuple(rows[1]) == names
    assert "".join(row[0] for row in rows[3:-1]) == model
    assert "…" not in "".join(lines_of(table))


def test_a_table_of_figures_too_wide_for_a_terminal_stands_in_parts() -> None:
    """No figure and no word of a column's name is cut; a part names the rows that have a figure in it."""
    names = ["TR@1", "IR@1", "BLEU-4", "CIDEr", "TR@1 by ITC", "samples"]
    columns = [Column(name="model"), *(Column(name=name, align="right") for name in names)]
    ours = ["someone/blip-image-captioning-large-of-a-long-name", 61.5, 62.5, Cell(value="39.1", note="(-1.3)")]
    theirs = ["published model", 81.5, 64.5, "40.4"]
    rows: list[list[Any]] = [
        [*ours, "131.0 ± 0.4", 63.5, "5,000, part"],
        [*theirs, "136.7", None, "published"],
        ["published recall", 82.5, 65.5, None, None, None, "published"],
    ]
    table = Table(title="coco:test", columns=columns, rows=rows)
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal(table, 80))
    text = capture.get()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for figure in ("61.5", "62.5", "39.1 (-1.3)", "131.0 ± 0.4", "63.5", "5,000, part", "81.5", "136.7"):
        assert text.count(figure) == 1
    for word in ("TR@1", "BLEU-4", "CIDEr", "samples"):
        assert word in text
    assert sum(line.startswith("┃ model") for line in lines) == 2
    assert text.count("published model") == 2
    assert text.count("published recall") == 1
    wide = Console(width=160, force_terminal=False)
    with wide.capture() as capture:
        wide.print(terminal(table, 160))
    assert sum(line.startswith("┃ model") for line in capture.get().splitlines()) == 1
