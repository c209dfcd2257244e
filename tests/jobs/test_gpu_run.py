"""benchmarks/gpu.sh --pretend: every stage of the run on a GPU, on the CPU in tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.aims import verdicts
from benchmarks.gpu.stages import STAGES

MEMORY_AIM = "peak memory of steps, beside what was predicted"
"""which a CPU does not tell, as it tells no MFU"""
REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of work on an old CPU
def test_every_stage_runs_in_tiny_sizes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [REPO / "benchmarks" / "gpu.sh", "--pretend"], capture_output=True, text=True, env=environment
    )
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log}"
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [stage["name"] for stage in result["stages"]] == [stage.name for stage in STAGES]
    rows = {row["case"]: row for stage in result["stages"] for row in stage["rows"]}
    assert not [row for row in rows.values() if "error" in row]
    assert rows["packages"]["missing"] == []
    assert rows["blip: outputs beside the reference's"]["outputs_agree"]
    assert rows["captions: ids in float32"]["outputs_agree"]
    assert rows["captions: ids in float32"]["compared"] == 80
    assert rows["4 texts, pixels: times faster"]["largest_difference"] < 1e-3
    # The same weights and inputs, whatever is on or off; the memory format and the order of sums round.
    losses = [rows[name]["loss"] for name in ("base", "AdamW not fused", "recomputing every block")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    assert {"torch.compile of the blocks", "stage 1: torch.compile of the blocks"} <= rows.keys()
    written = [row for case, row in rows.items() if case.startswith("writing, ") and "ratio" in row]
    assert [row["equal_tokens"] for row in written] == [1.0] * 4
    assert rows["ended"]["steps"] == 2
    assert rows["stage1: outputs beside LAVIS'"]["outputs_agree"]
    # All that is judged on a GPU, by the names that its cases have.
    measured = {aim["aim"] for aim in verdicts(result["stages"]) if aim["met"] is not None}
    assert measured == {aim["aim"] for aim in verdicts([])} - {"blip: MFU", MEMORY_AIM}
    assert "aims" not in result


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [REPO / "benchmarks" / "gpu.sh"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    stages = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert [stage["status"] for stage in stages] == ["failed"]
    assert "--pretend" in stages[0]["error"]
