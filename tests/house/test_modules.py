"""Every module imports with the core dependencies alone, and asking for help costs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SOURCE = REPO / "src" / "openblip"

# A module that is None in sys.modules behaves as one that is not installed, for `import` and `find_spec`.
IMPORT_ALL = """
import importlib, json, sys, traceback
names, blocked = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))
failed = {}
for name in names:
    try:
        importlib.import_module(name)
    except BaseException:
        failed[name] = traceback.format_exc(limit=-3)
print(json.dumps(failed))
"""


def module_names() -> list[str]:
    names = []
    for path in sorted(SOURCE.rglob("*.py")):
        dotted = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        if not dotted.endswith("__main__"):
            names.append(dotted.removesuffix(".__init__"))
    return names


def extras() -> list[str]:
    """Import names of what only an extra brings; torchvision comes with timm, httpx, h11 with huggingface-hub."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {r.partition(">")[0].partition("[")[0].strip().replace("-", "_") for r in requirements}

    optional = names([r for group in project["optional-dependencies"].values() for r in group])
    return sorted(optional - names(project["dependencies"]) - {"openblip", "torchvision", "httpx", "h11"})


def test_every_module_imports_without_the_extras() -> None:
    blocked = extras()
    assert {"matplotlib", "datasets", "tensorboard"} <= set(blocked)
    job = json.dumps([module_names(), blocked])
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, job], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert not failed, "\n".join(f"{name}: {trace}" for name, trace in failed.items())


def test_help_costs_no_torch() -> None:
    code = (
        "import sys\nfrom openblip import cli\nsys.argv = ['openblip', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'timm', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'--help imports {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
