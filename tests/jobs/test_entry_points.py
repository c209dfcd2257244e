"""The installed script and `python -m openblip`: versions, help, and one whole command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from job_commands import ENVIRONMENT
from job_world import World

import openblip as package
from openblip.cli.entry import COMMANDS
from openblip.cli.helps import typed as typed_as

SCRIPT = [str(Path(sys.executable).parent / "openblip")]
MODULE = [sys.executable, "-m", "openblip"]


def typed(command: list[str], *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    words = [*command, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["script", "module"])
def test_version(command: list[str]) -> None:
    assert typed(command, "--version").stdout == f"openblip {package.__version__}\n"


def test_help_names_every_command() -> None:
    help_text = typed(SCRIPT, "--help").stdout
    assert typed(SCRIPT).stdout == help_text, "no arguments ask for help"
    assert all(typed_as(name) in help_text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str) -> None:
    help_text = typed(SCRIPT, name, "--help").stdout
    first_line = (COMMANDS[name].__doc__ or "").splitlines()[0]
    assert " ".join(first_line.split()[:4]) in " ".join(help_text.split())


def test_a_mistake_is_one_sentence_and_code_2() -> None:
    done = typed(MODULE, "caption", "--modle", "x", code=2)
    assert done.stdout == ""
    assert done.stderr == 'openblip: openblip caption has no option "--modle" (did you mean "--model"?)\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["datasets"], ["--version"], ["train", "--help"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_output_on_a_full_disk_is_one_sentence_and_code_1(words: list[str], unbuffered: str) -> None:
    environment = {**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run([*MODULE, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    said = "openblip: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.slow
def test_the_script_captions(world: World, model: Path) -> None:
    done = typed(SCRIPT, "caption", world.images[0], "--model", model)
    assert json.loads(done.stdout)["captions"][0]["text"]
