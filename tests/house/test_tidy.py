"""What the repository holds: no machine's paths, no addresses of registries, one version, files of one subject."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import openblip
from tests import conftest

REPO = Path(__file__).resolve().parents[2]
LONGEST = 450
"""lines; a longer file has more than one subject"""

# Written in pieces, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(
    r"(?<![\w.~/-])(?:" + "|".join(f"/{root}/" for root in ("root", "home", "Users", "work", "workspace"))
    + r")\w|[A-Z]:\\\\?Users"
)  # fmt: skip
REGISTRIES = re.compile(
    r"--?(?:extra-)?index-url[ =]\S|\bindex-ur[l]\s*=|find-link[s]|https?://[^\s/]*(?:" + "|".join(
        ("py" + r"pi\.", "art" + "ifactory", "nex" + r"us\.", "files\\.py" + "thonhosted")
    ) + ")"
)  # fmt: skip


def tracked() -> list[Path]:
    """Files under version control, with those not yet added (but for ignored ones)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [REPO / name for name in done.stdout.split("\0") if name and (REPO / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:4096]:
            found.append((path.relative_to(REPO), data.decode("utf-8", errors="replace")))
    return found


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRIES], ids=["machine-paths", "registry-addresses"])
def test_no_file_names_a_machine(pattern: re.Pattern[str]) -> None:
    broken = [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in texts()
        if path.name != "vocab.txt"
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("open('/" + "root/x')", MACHINE_PATHS),
        ("cd /" + "work/main", MACHINE_PATHS),
        ("pip install --index" + "-url=https://a", REGISTRIES),
        ("https://py" + "pi.org/simple", REGISTRIES),
    ],
)
def test_the_patterns_find_what_they_are_for(line: str, pattern: re.Pattern[str]) -> None:
    assert pattern.search(line)
    assert not pattern.search("see docs/work/root.md, ~/home or https://github.com/x/y")


def test_the_version_is_one() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["version"] == openblip.__version__


def test_the_changelog_begins_with_the_version() -> None:
    path = REPO / "CHANGELOG.md"
    assert path.exists(), "CHANGELOG.md is missing"
    heads = re.findall(r"^## \[?v?(\d+\.\d+\.\d+[\w.]*)\]?", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert heads, "CHANGELOG.md has no heading of the form: ## 0.1.0"
    assert heads[0] == openblip.__version__


def test_constraints_hold_no_addresses() -> None:
    for path in tracked():
        if path.name.startswith("constraints") and path.suffix == ".txt":
            text = path.read_text(encoding="utf-8")
            assert "://" not in text, f"{path.name} names an address"
            assert " @ " not in text, f"{path.name} names a file or an address"


def test_files_have_one_subject() -> None:
    long = [
        f"{path.relative_to(REPO)}: {count} lines"
        for path in tracked()
        if path.suffix == ".py" and "tests" not in path.relative_to(REPO).parts
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    ]
    assert not long, f"longer than {LONGEST} lines:\n" + "\n".join(long)


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(REPO))
        for path in tracked()
        if path.suffix == ".py" and path.read_text(encoding="utf-8").strip()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, "without a docstring at the head: " + ", ".join(silent)


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by name alone, and stops at the second."""
    names = [
        path.name for path in (REPO / "tests").rglob("*.py") if path.name not in ("conftest.py", "__init__.py")
    ]
    assert sorted(set(names)) == sorted(names)


def test_files_that_tests_are_scheduled_by_are_there() -> None:
    names = {path.name for path in (REPO / "tests").rglob("test_*.py")}
    assert set(conftest.LONGEST) <= names
    for files in conftest.TOGETHER.values():
        for file in files:
            path = REPO / file
            assert path.is_dir() if file.endswith("/") else path.is_file(), file
