"""The experiment on BLIP-2 and the comparison with BLIP: smallest form from end to end, costs, what is claimed."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.cli.entry import _read
from openblip.core.errors import UserError
from openblip.experiments.blip2 import FIRST, QUICK, SECOND, run_blip2_experiment
from openblip.experiments.blip2_page import _verdict, blip2_page
from openblip.experiments.compare import MODELS, compare_models
from openblip.experiments.compare_page import compare_page
from openblip.experiments.judges.blip2_stages import _mean_cosine
from openblip.report import write_report

REPO = Path(__file__).resolve().parents[3]
PAGE = (REPO / "docs" / "blip2-proof.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(forked: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("blip2") / "runs" / "quick"
    return out, run_blip2_experiment(out, QUICK, seeds=1)


@pytest.mark.slow
def test_every_variant_is_measured_and_trained_once(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    mean = result["mean"]
    assert set(mean["stage 1"]) == set(FIRST)
    assert set(mean["stage 2"]) == set(SECOND)
    assert {path.name for path in (out / "seed-0" / "stage1").iterdir()} == {
        name.lower().replace(" ", "-") for name in FIRST
    }
    for metrics in mean["stage 2"].values():
        assert 0 <= metrics["truth"][0] <= 1
        assert 0 <= metrics["answers_all"][0] <= 1
        assert metrics["truth"][1] is None
    assert "itg_perplexity" in mean["stage 1"]["whole"]
    for table in ("stage 1", "stage 2"):
        assert -1 <= mean[table]["whole"]["query_likeness"][0] <= 1
    queries = {name: mean["stage 1"][name]["trained_parameters"][0] for name in FIRST}
    assert queries["32 queries"] - queries["4 queries"] == 28 * 96
    described = json.loads((out / "seed-0" / "stage2" / "4-queries" / "model" / "config.json").read_text())
    assert described["model"]["qformer"]["num_queries"] == 4
    frozen = json.loads((out / "seed-0" / "stage2" / "encoder-decoder" / "model" / "config.json").read_text())
    assert set(frozen["frozen"]) == {"vision", "language"}
    write_report(out / "page.html", blip2_page(result))
    assert "without stage 1" in (out / "page.html").read_text()


@pytest.mark.slow
def test_what_is_done_is_not_done_again(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    stages: list[str] = []
    assert run_blip2_experiment(out, QUICK, seeds=1, on_stage=stages.append) == result
    assert stages == []
    with pytest.raises(UserError, match=r"other settings.*stage1_steps"):
        run_blip2_experiment(out, replace(QUICK, stage1_steps=3), seeds=1)


@pytest.mark.slow
def test_blip_stands_beside_blip2(finished: tuple[Path, dict[str, Any]]) -> None:
    out, before = finished
    stages: list[str] = []
    result = compare_models(out, QUICK, seeds=1, on_stage=stages.append)
    assert not any("stage 1," in stage or "stage 2," in stage for stage in stages if "cost" not in stage)
    mean = result["mean"]
    assert set(mean["models"]) == set(mean["cost"]) == set(MODELS)
    assert mean["models"]["BLIP-2, stage 2, decoder"] == before["mean"]["stage 2"]["whole"]
    blip, first, second = (mean["cost"][name] for name in MODELS[:3])
    assert blip["trained_parameters"] == blip["parameters"]
    assert second["trained_parameters"][0] < first["trained_parameters"][0] < first["parameters"][0]
    # What is cached need not be computed; the frozen tower is the difference.
    assert first["cached_gflops"][0] < first["gflops"][0]
    for metrics in mean["cost"].values():
        assert metrics["seconds"][0] > 0
        assert metrics["peak_mb"][0] > 1
    write_report(out / "compare-report.html", compare_page(result))
    assert "What a step costs" in (out / "compare-report.html").read_text()


@pytest.mark.slow
def test_the_python_of_the_page_runs(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, result = finished
    monkeypatch.chdir(out.parents[1])  # where its folder, runs/quick, is done already
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    exec(compile(code, "docs/blip2-proof.md", "exec"), {})
    assert capsys.readouterr().out.strip() == str(result["mean"]["stage 2"]["whole"]["truth"])


def test_the_commands_of_the_page_are_understood() -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    commands = [line for block in blocks for line in block.splitlines() if line.startswith("openblip ")]
    assert len(commands) >= 2
    for line in commands:
        _read(shlex.split(line.split(" #")[0])[1:])


def test_the_likeness_of_queries_is_the_mean_over_pairs() -> None:
    queries = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = _mean_cosine(queries)
    for row, value in zip(queries, found, strict=True):
        pairs = [torch.cosine_similarity(row[i], row[j], dim=0) for i in range(4) for j in range(4) if i != j]
        torch.testing.assert_close(value, torch.stack(pairs).mean())


@pytest.mark.parametrize(
    ("better", "worse", "word"),
    [
        ([0.5, 0.01], [0.4, 0.01], "holds"),
        ([0.4, 0.01], [0.5, 0.01], "does not hold"),
        ([0.5, 0.1], [0.45, 0.1], "cannot be distinguished"),
        ([0.5, None], [0.45, None], "in the one seed"),
        ([0.4, None], [0.45, None], "does not hold in the one seed"),
    ],
)
def test_a_claim_is_said_to_hold_beyond_the_spread_alone(better: Any, worse: Any, word: str) -> None:
    assert word in _verdict(better, worse)
