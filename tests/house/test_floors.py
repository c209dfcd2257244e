"""The floors of the house: a module imports from its own package and from lower floors only, never in a loop.

Imports inside functions count as well, since a lazy import is a dependency too. So do those for type checkers
alone: neither of two files whose types need each other can be read, tested or moved without the other. A new
package must be given its floor here before it can be imported.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCE = REPO / "src" / "openblip"

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"core"}),
    frozenset({"models", "data", "metrics"}),
    frozenset({"generation", "objectives", "checkpoints"}),
    frozenset({"training"}),
    frozenset({"tasks"}),
    frozenset({"recipes", "explain"}),
    frozenset({"bootstrap", "index"}),
    frozenset({"report"}),
    frozenset({"serving", "experiments"}),
    frozenset({"cli"}),
)
FACADE = "openblip"
"""`openblip/__init__.py` (and `__main__.py`): sees everything, and is seen by nobody but for its version."""

# Narrower than the floors: what is allowed at all, besides the own package.
ONLY = {"training": ("core", "checkpoints.store")}
NEVER = {"generation": ("data",), "objectives": ("data",), "checkpoints": ("data",)}

KNOWN_LOOPS: tuple[frozenset[str], ...] = ()
"""Loops that are still there; one that is gone must go from here as well."""

# Heavy libraries and the only modules that know them.
OWNERS: dict[str, tuple[str, ...]] = {
    "timm": ("models.vision", "models.tower_timm"),
    "transformers": (
        *("models.language", "models.language_kinds", "models.language_sizes", "models.tower_hf"),
        *("models.opening", "experiments.judges.small_language"),
        *("core.tokenizer", "core.language_tokenizer", "checkpoints"),
    ),
    "tokenizers": ("core.tokenizer", "core.language_tokenizer"),
    "accelerate": ("training",),
    "tensorboard": ("training",),
    "matplotlib": ("explain", "cli.explain", "cli.index"),
    "jinja2": ("report",),
    "markupsafe": ("report",),
    "pyarrow": ("data",),
    "datasets": ("data",),
    "webdataset": ("data",),
    "spacy": ("metrics.lemmas",),
    "ray": ("bootstrap", "serving", "cli.checks", "cli.engines"),
    "peft": ("models.language",),
    "bitsandbytes": ("models.language",),
    "fastapi": ("serving", "cli.serve"),
    "starlette": ("serving", "cli.serve"),
    "uvicorn": ("serving", "cli.serve"),
    "pydantic": ("serving",),
    "psycopg": ("index",),
    "pgvector": ("index",),
    "python_multipart": ("serving", "cli.serve"),
}
IMPORT_NAMES = {"pillow": "PIL", "huggingface-hub": "huggingface_hub"}
"""where the name to import is not the name to install"""


@dataclass(frozen=True)
class Import:
    """One name that a module of ours imports, wherever in the file."""

    importer: str
    """dotted, without "openblip.": "models.text"; the facade is "openblip" """
    target: str
    """absolute and dotted, as far as it is a module: "openblip.core.errors", "torch.nn" """
    line: int

    def __str__(self) -> str:
        return f"{self.importer} line {self.line} imports {self.target}"


def is_module(dotted: str) -> bool:
    path = REPO / "src" / Path(*dotted.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of(path: Path) -> Iterator[Import]:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    package = parts[:-1]
    module = ".".join(parts[1:]).removesuffix(".__init__")
    importer = FACADE if module in ("__init__", "__main__") else module
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name != FACADE or name.asname:
                    yield Import(importer, name.name, node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == FACADE:
            # What `import openblip` is used for.
            yield Import(importer, f"{FACADE}:{node.attr}", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            for name in node.names:
                full = ".".join((*base, name.name))
                yield Import(importer, full if is_module(full) else ".".join(base) + f":{name.name}", node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            # importlib.import_module("x") and core.errors.require("x", extra) are imports as well.
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__", "require") and isinstance(node.args[0].value, str):
                yield Import(importer, node.args[0].value, node.lineno)


@cache
def all_imports() -> list[Import]:
    return [found for path in sorted(SOURCE.rglob("*.py")) for found in imports_of(path)]


def floor_of(package: str) -> int:
    for level, packages in enumerate(FLOORS):
        if package in packages:
            return level
    raise AssertionError(f'"{package}" stands on no floor: add it to FLOORS in {Path(__file__).name}')


def inner(found: Import) -> str | None:
    """What is imported of ours, without "openblip."; None for other libraries."""
    target = found.target.partition(":")[0]
    if target == FACADE:
        return FACADE
    return target.removeprefix("openblip.") if target.startswith("openblip.") else None


def broken_rule(found: Import) -> str | None:
    target = inner(found)
    if target is None or found.importer == FACADE:
        return None
    if target == FACADE:
        return None if found.target == "openblip:__version__" else "nothing imports the facade"
    own, other = found.importer.split(".")[0], target.split(".")[0]
    if own == other:
        return None
    if own in ONLY and not any(target == allowed or target.startswith(allowed + ".") for allowed in ONLY[own]):
        return f"{own} sees {' and '.join(ONLY[own])} only"
    if other in NEVER.get(own, ()):
        return f"{own} never sees {other}"
    if floor_of(other) > floor_of(own):
        return "imports go down only"
    if floor_of(other) == floor_of(own):
        return "packages of one floor do not know each other"
    return None


def test_imports_go_down_only() -> None:
    broken = [f"{found}: {rule}" for found in all_imports() if (rule := broken_rule(found))]
    assert not broken, "\n".join(broken)
    assert len([found for found in all_imports() if inner(found)]) > 20, "the test has lost sight of the imports"


@pytest.mark.parametrize(
    ("importer", "target", "allowed"),
    [
        ("models.text", "openblip.core.errors", True),
        ("models.text", "openblip.models.layers", True),
        ("models.text", "openblip.data.sample", False),
        ("core.config", "openblip.models.text", False),
        ("objectives.momentum", "openblip.models.blip", True),
        ("objectives.momentum", "openblip.data.sample", False),
        ("training.loop", "openblip.checkpoints.store", True),
        ("training.loop", "openblip.checkpoints.blip", False),
        ("training.loop", "openblip.models.blip", False),
        ("tasks.caption", "openblip.data.stream", True),
        ("cli", "openblip:load", False),
        ("training.state", "openblip:__version__", True),
    ],
)
def test_the_rule_itself(importer: str, target: str, allowed: bool) -> None:
    assert (broken_rule(Import(importer, target, 1)) is None) == allowed


def loops(imports: Iterable[Import]) -> set[frozenset[str]]:
    """The groups of modules of which each reaches every other one by imports; the facade is left out.

    Tarjan's strongly connected components of more than one module.
    """
    targets: dict[str, set[str]] = {}
    for found in imports:
        target = inner(found)
        if target is not None and FACADE not in (found.importer, target):
            targets.setdefault(found.importer, set()).add(target)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    groups: set[frozenset[str]] = set()

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for target in targets.get(module, ()):
            if target not in number:
                visit(target)
            if target in path:
                lowest[module] = min(lowest[module], lowest[target])
        if lowest[module] == number[module]:
            group = frozenset(path[path.index(module) :])
            del path[path.index(module) :]
            if len(group) > 1:
                groups.add(group)

    for module in list(targets):
        if module not in number:
            visit(module)
    return groups


def test_no_imports_in_a_loop() -> None:
    found = loops(all_imports())
    new = found - set(KNOWN_LOOPS)
    assert not new, "\n".join("these import each other: " + ", ".join(sorted(group)) for group in new)
    gone = set(KNOWN_LOOPS) - found
    assert not gone, f"delete from KNOWN_LOOPS what is no loop any more: {[sorted(group) for group in gone]}"


def test_loops_are_found() -> None:
    pairs = ["ab", "bc", "ca", "cd", "de", "ed", "fa", "fg", "gh"]
    imports = [Import(f"core.{a}", f"openblip.core.{b}:name", 1) for a, b in pairs]
    imports += [Import("core.g", "openblip:__version__", 1), Import(FACADE, "openblip.core.g", 1)]
    assert loops(imports) == {frozenset({"core.a", "core.b", "core.c"}), frozenset({"core.d", "core.e"})}


def test_lazy_and_relative_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "openblip" / "core"
    package.mkdir(parents=True)
    (package / "odd.py").write_text(
        "import openblip\ndef f():\n    from ..models import text\n    import openblip.cli\n"
        "    require('matplotlib', 'report')\n    return openblip.load\n"
    )
    monkeypatch.setitem(globals(), "SOURCE", tmp_path / "openblip")
    found = list(imports_of(package / "odd.py"))
    assert {f.target: broken_rule(f) for f in found} == {
        "openblip.models.text": "imports go down only",
        "openblip.cli": "imports go down only",
        "openblip:load": "nothing imports the facade",
        "matplotlib": None,
    }


def test_heavy_libraries_have_one_owner() -> None:
    broken = []
    for found in all_imports():
        library = found.target.partition(":")[0].split(".")[0]
        if found.target.startswith("torch.utils.tensorboard"):
            library = "tensorboard"
        owners = OWNERS.get(library)
        if owners and not any(found.importer == o or found.importer.startswith(o + ".") for o in owners):
            broken.append(f"{found}: only {', '.join(owners)} may")
    assert not broken, "\n".join(broken)


def test_every_library_is_declared() -> None:
    """What is imported stands in pyproject.toml; nothing works by the chance of a dependency's dependency."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    names = [r.partition(">")[0].partition("[")[0].partition(";")[0].strip() for r in wanted]
    declared = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    undeclared = {
        str(found)
        for found in all_imports()
        if (library := found.target.partition(":")[0].split(".")[0]) not in declared
        and library not in sys.stdlib_module_names
        and library != "openblip"
    }
    assert not undeclared, "\n".join(sorted(undeclared))
