"""The Dockerfile, read step by step: it cannot be built where there is no Docker."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from openblip.cli.entry import _read

REPO = Path(__file__).resolve().parents[3]
STEPS = {
    "ARG",
    "FROM",
    "RUN",
    "ENV",
    "WORKDIR",
    "COPY",
    "USER",
    "EXPOSE",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
}


def steps() -> list[tuple[str, str]]:
    text = (REPO / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in joined.splitlines()]


def values(name: str) -> list[str]:
    return [value for step, value in steps() if step == name]


def test_every_step_is_known_and_not_empty() -> None:
    assert {name for name, _ in steps()} == STEPS
    assert all(value for _, value in steps())
    assert [name for name, _ in steps()][:2] == ["ARG", "FROM"]


def test_the_base_is_an_argument() -> None:
    assert values("ARG")[0].startswith("BASE=")
    assert values("FROM") == ["${BASE}"]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = (REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for line in values("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (REPO / source).exists(), source
            assert f"!{source}" in kept
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["readme"] in " ".join(values("COPY")), "the build needs it"
    assert "serving" in project["optional-dependencies"]


@pytest.mark.parametrize("line", values("RUN"))
def test_commands_can_be_parsed(line: str) -> None:
    words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
    assert words.count("(") == words.count(")")
    assert words[-1] not in ("&&", "||", "|")


def test_it_runs_as_a_user_who_is_not_root() -> None:
    names = [name for name, _ in steps()]
    user = values("USER")[-1]
    assert user.split(":")[0].isdecimal(), "a number, which Kubernetes can tell from root"
    assert int(user.split(":")[0]) > 0
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :], "later steps would write as that user"


def test_it_starts_the_service_and_looks_after_it() -> None:
    command = json.loads(values("ENTRYPOINT")[0])
    assert command[0] == "openblip"
    assert callable(_read([*command[1:], "/models/captioner"]))
    port = command[command.index("--port") + 1]
    assert values("EXPOSE") == [port]
    (check,) = values("HEALTHCHECK")
    code = json.loads(check.partition("CMD ")[2])
    compile(code[2], "health check", "exec")
    assert f":{port}/readyz" in code[2]
    assert values("STOPSIGNAL") == ["SIGTERM"]
