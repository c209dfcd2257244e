"""docs/capfilt.md: its commands are read, its tables are complete, its Python runs."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from capfilt_small import config, output, rows_of, run, write_tar

from openblip.bootstrap.policy import REASONS, Policy
from openblip.bootstrap.table import _ROW, _TEXT
from openblip.cli.entry import COMMANDS, _read
from openblip.data.sinks import LAYOUTS

REPO = Path(__file__).resolve().parents[3]
PAGE = (REPO / "docs" / "capfilt.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("openblip ")]
    return [shlex.split(line.split(" #")[0])[1:] for line in lines]


def test_every_command_is_understood() -> None:
    read = [_read(words) for words in commands()]
    assert len(read) >= 9
    known = {command.__name__ for command in COMMANDS.values()}
    assert {inspect.unwrap(command.func).__name__ for command in read} <= known  # type: ignore[attr-defined]


def test_its_tables_are_complete() -> None:
    for name in (*_ROW, *_TEXT, *REASONS, *get_args(get_type_hints(Policy)["name"])):
        assert f"`{name}`" in PAGE, name
    for layout in LAYOUTS:
        assert layout in PAGE


def test_its_python_runs(models: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "web" / "00000.tar", 0, 5)
    run(config(models, tmp_path / "web"), tmp_path / "clean", output())
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "docs/capfilt.md", "exec"), names)
    rows = rows_of(tmp_path / "clean")
    assert names["dropped"] == [text.text for row in rows for text in row.texts if not text.kept]
    listed = re.findall(r"^    capfilt/(\S+)", blocks("")[2], flags=re.MULTILINE)
    there = [name for name in listed if any((tmp_path / "clean" / "capfilt").glob(name))]
    assert set(listed) - set(there) == {"report.html"}  # which the command writes
