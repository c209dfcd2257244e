"""Text is read by openblip.core.text alone, so that encodings and ends of lines are the same everywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "openblip"

OWNER = "core/text.py"
OWN_FILES = {}
"""files that read what a command of ours wrote whole, never a user's"""
METHODS = {"models/blip2.py": "the Q-Former's read_text, which encodes"}


def violations(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if attribute == "splitlines":
            yield node.lineno, "splitlines cuts at U+2028 and more; use core.text.lines_of"
        if attribute == "read_text":
            yield node.lineno, "read_text knows no byte-order mark and no UserError; use core.text"
        if name == "open" and _reads_text(node, place=1):
            yield node.lineno, "open reads text; use core.text"
        if attribute == "open" and node.args and _reads_text(node, place=0) and _mode(node, 0):
            yield node.lineno, "open reads text; use core.text"
        for keyword in node.keywords:
            if keyword.arg == "errors" and getattr(keyword.value, "value", None) in ("replace", "ignore"):
                yield node.lineno, f'errors="{keyword.value.value}" loses what cannot be read'  # type: ignore[attr-defined]


def _mode(call: ast.Call, place: int) -> str:
    given = next((k.value for k in call.keywords if k.arg == "mode"), None)
    if given is None and len(call.args) > place:
        given = call.args[place]
    value = getattr(given, "value", None)
    return value if isinstance(value, str) and 0 < len(value) <= 3 and set(value) <= set("rwxabt+") else ""


def _reads_text(call: ast.Call, place: int) -> bool:
    """Whether it is opened as text, and to read."""
    mode = _mode(call, place) or "r"
    return "b" not in mode and ("r" in mode or "+" in mode)


def found_in_source() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for line, what in violations(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(path.relative_to(SOURCE).as_posix(), []).append(f"line {line}: {what}")
    return found


def test_text_is_read_in_one_place() -> None:
    found = found_in_source()
    allowed = {OWNER, *OWN_FILES, *METHODS}
    broken = [f"{file} {line}" for file, lines in found.items() if file not in allowed for line in lines]
    assert not broken, "\n".join(broken)
    for file in (*OWN_FILES, *METHODS):
        assert not [line for line in found.get(file, []) if "splitlines" in line or "errors=" in line], file


def test_what_is_allowed_is_still_needed() -> None:
    assert {*OWN_FILES, *METHODS} <= found_in_source().keys()


@pytest.mark.parametrize(
    ("code", "broken"),
    [
        ("a.splitlines()", True),
        ("path.read_text()", True),
        ("open(path)", True),
        ("open(path, encoding='utf-8')", True),
        ("open(path, 'rt')", True),
        ("path.open('r')", True),
        ("data.decode('utf-8', errors='replace')", True),
        ("open(path, 'rb')", False),
        ("open(path, mode='ab+')", False),
        ("open(path, 'w', encoding='utf-8')", False),
        ("Image.open(path)", False),
        ("path.open('rb')", False),
        ("data.decode('utf-8', errors='surrogateescape')", False),
    ],
)
def test_the_rule_itself(code: str, broken: bool) -> None:
    assert bool(list(violations(ast.parse(code)))) == broken
