"""The examples of docs/serving.md against a service of small models."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_http import serving_at
from serving_small import png, predictors

from openblip.serving.app import Service
from openblip.serving.local import LocalEngine

REPO = Path(__file__).resolve().parents[3]
PAGE = (REPO / "docs" / "serving.md").read_text(encoding="utf-8")
WRITTEN_FOR = "http://127.0.0.1:8000"
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.S | re.M)
CURL = [line for line in PAGE.splitlines() if line.startswith("curl ")]


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service as the page names its models, beside a photograph."""
    (tmp_path / "photo.jpg").write_bytes(png(1))
    monkeypatch.chdir(tmp_path)
    made = predictors()
    named = {"captioner": made["blip"], "matcher": predictors()["blip"], "answerer": made["vqa"]}
    with serving_at(Service(LocalEngine(named, gather_ms=0))) as found:
        yield found


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[-1][:40])
def test_python_runs(address: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert WRITTEN_FOR in code
    exec(compile(code.replace(WRITTEN_FOR, address), "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_runs(address: str) -> None:
    assert len(CURL) >= 10
    for line in CURL:
        if any(what in line for what in ("/v1/search", "/v1/capfilt", "example.com")):
            continue  # needs an index, a CapFilt run, the network
        command = shlex.split(line.replace(WRITTEN_FOR, address))
        done = subprocess.run([*command, "--fail-with-body", "--silent", "--show-error"], capture_output=True)
        assert done.returncode == 0, (line, done.stdout[:300], done.stderr)


def test_the_load_is_the_stored_one() -> None:
    stored = json.loads(
        (REPO / "benchmarks" / "results" / "serve-amd-epyc-2-cores.json").read_text(encoding="utf-8")
    )
    (row,) = stored["rows"]
    assert row["outputs_agree"]
    assert row["ratio"] >= 3
    told = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE, flags=re.M))
    assert told["requests answered each second, beside the bad clients"] == f"{row['requests_a_second']}"
    (delays,) = [value for name, value in told.items() if name.startswith("seconds from the first")]
    assert delays == f"{row['p50_s']:.2f}, {row['p99_s']:.2f}"
    answers = [f"{row.get(name, 0):,}" for name in ("right", "wrong", "lost")]
    assert told["good answers that were right; wrong; lost"] == "; ".join(answers)
    assert told["times that a client was told to wait (429), and came again"] == f"{row['told_to_wait']:,}"
    assert told["memory of the server before, after one minute and after two, MB"] == ", ".join(
        f"{mb:,}" for mb in row["memory_mb"]
    )
    assert told["batches over one request at a time"] == f"{row['ratio']} times"
