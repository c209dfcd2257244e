"""The run on a GPU: what its parts say without one, and that its predictions are those of the code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import caption, published
from benchmarks.gpu import bootstrap, compiled, options, predict, training
from benchmarks.gpu import tests as gpu_tests
from benchmarks.gpu.aims import verdicts
from benchmarks.gpu.environment import missing_packages
from benchmarks.gpu.run import run
from benchmarks.gpu.stages import STAGES, Stage, last_line
from benchmarks.gpu.steps import WORKS, blip_sizes
from benchmarks.tables import RESULTS
from openblip.core.gpus import GPUS, gpu_of_driver, utilization
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.models.blip import Blip
from openblip.models.flops import FlopCounterMode
from openblip.models.stepper import DecoderStepper
from openblip.tasks.cost import give_storage

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")


def toy(folder: Path, **bodies: str) -> tuple[Stage, ...]:
    """Stages of a few lines each."""
    package = folder / "toy_stages"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, body in bodies.items():
        head = "import os, signal, sys, time\n\n\ndef measure(report):\n"
        (package / f"{name}.py").write_text(head + textwrap.indent(textwrap.dedent(body), "    "))
    return tuple(Stage(name, 100, name, package="toy_stages") for name in bodies)


@pytest.mark.slow
def test_a_stage_that_ends_badly_is_recorded_and_the_next_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).resolve().parents[2]}", prepend=":")
    stages = toy(
        tmp_path,
        raises="report.add('one', value=1)\nraise ValueError('what is\\nwrong with it')",
        crashes="os.kill(os.getpid(), signal.SIGKILL)",
        hangs="report.add('two', value=2)\ntime.sleep(600)",
        none="for case in 'ab':\n    with report.case(case):\n        raise ValueError('nothing goes')",
        case="with report.case('a'):\n    raise MemoryError('out of memory')\nreport.add('b', value=3)",
    )
    # What fails and is needed ends the run; how long it takes to start says how long the one that hangs must have.
    needed, began = (replace(stages[0], needed=True), *stages[1:]), time.perf_counter()
    assert [stage["name"] for stage in run(tmp_path / "out", minutes=5, all_stages=needed)["stages"]] == ["raises"]
    limit = round(5 + 3 * (time.perf_counter() - began))
    stages = tuple(replace(stage, seconds=float(limit)) if stage.name == "hangs" else stage for stage in stages)
    result = run(tmp_path / "out", minutes=5, all_stages=stages)
    assert json.loads((tmp_path / "out" / "gpu.json").read_text()) == result
    told = {stage["name"]: (stage["status"], stage.get("error"), stage["rows"]) for stage in result["stages"]}
    assert told == {
        "raises": ("failed", "wrong with it", [{"case": "one", "value": 1}]),
        "crashes": ("failed", "ended by signal SIGKILL; last words: ", []),
        "hangs": ("out of time", f"ended after {limit} s", [{"case": "two", "value": 2}]),
        "none": (
            "failed",
            "no case was measured; the first: ValueError: nothing goes",
            [{"case": case, "error": "ValueError: nothing goes"} for case in "ab"],
        ),
        "case": ("done", None, [{"case": "a", "error": "MemoryError: out of memory"}, {"case": "b", "value": 3}]),
    }
    assert "Traceback" in (tmp_path / "out" / "log.txt").read_text()
    # No time: nothing begins.
    result = run(tmp_path / "late", minutes=0.01, all_stages=stages)
    assert {stage["status"] for stage in result["stages"]} == {"left out"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_stops_the_run_ends_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    """The one that runs with the process that it started, and the one that waits; what was found is kept."""
    body = """
        import subprocess
        child = subprocess.Popen(["sleep", "600"])
        report.add("pids", pids=[os.getpid(), child.pid])
        time.sleep(600)
    """
    toy(tmp_path, hangs=body, waits="pass")
    program = f"""
        import sys
        from pathlib import Path
        from benchmarks.gpu import __main__ as command
        from benchmarks.gpu.run import run
        from benchmarks.gpu.stages import Stage
        stages = [Stage(name, 100, name, package="toy_stages") for name in ("hangs", "waits")]
        command.run = lambda out, **options: run(out, minutes=5, all_stages=stages)
        sys.exit(command.main(["--out", "{tmp_path}/out"]))
    """
    path = f"{tmp_path}:{Path(__file__).resolve().parents[2]}"
    monkeypatch.setenv("PYTHONPATH", path, prepend=":")
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    found = tmp_path / "out" / "gpu.json"

    def rows() -> list[dict[str, Any]]:
        stages = json.loads(found.read_text())["stages"] if found.exists() else []
        return stages[0].get("rows", []) if stages else []

    wait_until(lambda: bool(rows()), 120)
    process.send_signal(signum)
    assert process.wait(60) == (-signum if signum == signal.SIGKILL else 128 + signum)
    wait_until(lambda: not any(alive(pid) for pid in rows()[0]["pids"]), 20)
    if signum != signal.SIGKILL:
        result = json.loads(found.read_text())
        assert result["stopped"] == signum.name
        (stage,) = result["stages"]
        assert (stage["status"], stage["error"]) == ("stopped", f"stopped by {signum.name}")


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_whole_run_fits_its_time_but_for_the_training() -> None:
    *measured, last = STAGES
    assert sum(stage.seconds for stage in measured) <= 480
    assert last.name == "train"
    assert STAGES[0].needed
    assert last_line("a\n b \n\n") == "b"
    assert last_line("") == ""


def test_compiling_can_cost_no_other_option() -> None:
    """It takes as long as it takes when nothing is cached, and a stage ends with its time."""
    assert [stage.name for stage in STAGES][-2:] == ["compiled", "train"]
    assert not [name for name in options.OPTIONS if "compile" in name]
    assert any("compile" in name for name in compiled.COMPILED)


def test_a_measured_loader_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "LOADER_SECONDS", 0.0)
    assert options._loader(pretend=True)["images"] == 4


def test_all_files_with_tests_for_a_gpu_are_run() -> None:
    files = [
        "tests/gpu/test_gpu_graphs.py",
        "tests/gpu/test_gpu_steps.py",
        "tests/unit/objectives/test_pretraining_step.py",
    ]
    assert gpu_tests.marked_files() == files


def test_verdicts_are_those_of_the_measured_rows() -> None:
    def step(case: str, speed: float, peak: float, **more: Any) -> dict[str, Any]:
        return {"case": case, "images_per_s": speed, "peak_gib": peak, "predicted": {"peak_gib": 10.0}, **more}

    rows = [
        step("blip, batch 64: ours", 160, 9.5, mfu=0.3),
        step("blip, batch 128: ours", 900, 10.5, mfu=0.36),
        step("blip, batch 128: as the reference computes", 5000, 50.0, mfu=0.9),
        step("stage1, batch 128: ours", 449, 12.0),
        {"case": "stage2: ours", "error": "OutOfMemoryError"},
        {"case": "captions, batch 1: times faster", "ratio": 2.9},
        {"case": "captions, batch 64: times faster", "ratio": 5.0},
        {"case": "CapFilt: times faster", "ratio": 3.0},
    ]
    told = verdicts([{"rows": rows}, {"status": "left out"}])
    assert [aim["met"] for aim in told] == [True, True, False, None, False, False, True]
    memory, captions = told[4:6]
    assert (memory["found"], memory["case"]) == (pytest.approx(0.2), "stage1, batch 128: ours")
    assert captions["case"] == "captions, batch 1: times faster"
    assert all(aim["met"] is None for aim in verdicts([]))


def test_utilization_of_known_cards() -> None:
    assert gpu_of_driver("NVIDIA H100 80GB HBM3") == GPUS["h100"]
    assert gpu_of_driver("NVIDIA H100 PCIe") is None
    assert utilization(98.9, 0.2, GPUS["h100"]) == pytest.approx(0.5)
    assert utilization(98.9, 0.2, gpu_of_driver(None)) is None


def test_missing_packages_are_named(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["torch>=1", "numpy>=999", "no-such-package-of-ours>=2"]\n')
    old, missing = missing_packages(project)
    assert old.startswith("numpy>=999 (is ")
    assert missing == "no-such-package-of-ours>=2"
    assert missing_packages() == []


@pytest.mark.parametrize("name", WORKS)
def test_the_forward_pass_of_a_step_stays_on_the_gpu(name: str) -> None:
    """On tensors that say they are on a GPU and have no values: one of another device, or a value that is read
    back, is an error."""
    work = WORKS[name](True)
    step = work.make("meta").train()
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        with torch.device("cuda"):
            give_storage(step)
        step.set_progress(0.5, True)
        losses = step(work.batch(4).to("cuda"))
        assert {loss.device.type for loss in losses.values()} == {"cuda"}


def test_predictions_are_in_the_page_and_cover_what_is_measured() -> None:
    stored = json.loads(predict.STORED.read_text(encoding="utf-8"))
    assert "\n".join(predict.table(stored)) in PAGE
    assert "not yet checked by a run" in PAGE
    for name, batches in training.BATCHES.items():
        for batch in batches:
            assert predict.predicted(f"{name}, batch {batch}") is not None
    for batch in bootstrap.BATCHES[:1]:
        assert predict.predicted(f"features of the frozen tower, batch {batch}") is not None
    assert predict.predicted("something else") is None


def test_stored_predictions_are_those_of_other_counts() -> None:
    """Of the step that is measured on a CPU, batch 8, and of BLIP-2's memory table."""
    step = json.loads((RESULTS / "blip-pretrain-amd-epyc-2-cores.json").read_text())["rows"][0]
    found = predict.predicted("blip, batch 128")
    assert found is not None
    assert found["tflop"] / 128 == pytest.approx(step["ours_tflop"] / 8, rel=0.02)
    rows = {row["case"]: row for row in json.loads((RESULTS / "blip2-memory.json").read_text())["rows"]}
    for name, case in (("stage1", "stage 1"), ("stage2", "stage 2, OPT-2.7B")):
        found = predict.predicted(f"{name}, batch 128")
        assert found is not None
        expected = rows[case]["peak_gib"]["32"] + 96 * rows[case]["each_mib"] / 1024
        assert found["peak_gib"] == pytest.approx(expected, rel=0.02)
        assert found["trained_parameters"] == rows[case]["trained_parameters"]


@pytest.mark.slow
def test_stored_predictions_are_what_the_code_computes() -> None:
    steps = (predict.predict_step("blip", 64), predict.predict_step("stage1", 128))
    for found in (*steps, predict.predict_captions(16), predict.predict_matching(128)):
        assert found == predict.predicted(found["case"])


def test_the_arithmetic_of_a_caption_is_that_of_writing_one() -> None:
    config = blip_sizes(True, "base", 384)
    torch.manual_seed(0)
    model = Blip(replace(config, encoder=False)).eval()
    writing = DecodeConfig(num_beams=caption.BEAMS, min_new_tokens=caption.NEW, max_new_tokens=caption.NEW)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        memory = model.remember(model.encode_image(torch.randn(1, 3, *config.vision.pixels)))
        start = torch.full((1, 1), published.DEC)
        decode(DecoderStepper(model.decoder, memory), start, None, writing, eos_ids=published.SEP, pad_id=0)
    # Attention over the words before is left out of the prediction.
    assert predict.caption_flops(config) == pytest.approx(counter.get_total_flops(), rel=0.02)
