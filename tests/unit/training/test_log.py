"""What whoever watches a run sees: on a terminal, and in a file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from openblip.training.log import RunLog

LOSSES = {"loss": 4.906, "loss_itc": 2.551, "loss_itm": 0.6377, "itm_accuracy": 0.6719, "loss_lm": 1.717}
RECORD: dict[str, Any] = {
    "step": 210, "epoch": 0.56, "time": 1.0, "split": "train", **LOSSES, "grad_norm": 3.1,
    "learning_rate": 3e-3, "images_per_second": 186.4,
}  # fmt: skip


def _log(folder: Path) -> RunLog:
    accelerator: Any = SimpleNamespace(trackers=[], log=lambda *_, **__: None)
    return RunLog(folder, title="fine-tuning the captioner", total_steps=600, accelerator=accelerator)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_shows_all_numbers_however_narrow(tmp_path: Path, width: int) -> None:
    screen = io.StringIO()
    log = _log(tmp_path)
    log.console = Console(file=screen, force_terminal=True, width=width)
    with log:
        log.record(RECORD, seconds_left=72.0)
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = [line.strip("\r") for line in seen.splitlines()][-12:]
    assert all(len(line.rstrip()) <= width for line in last)
    assert "…" not in "".join(last)
    shown = " ".join(" ".join(last).split())
    for message in (
        "fine-tuning the captioner",
        "210/600",
        "186.4 images/s",
        "1:12 left",
        "epoch 0.56",
        "lr 3.00e-03",
    ):
        assert message in shown
    assert all(f"{name} {value:.4g}" in shown for name, value in LOSSES.items())


def test_an_evaluation_breaks_between_words(tmp_path: Path) -> None:
    screen = io.StringIO()
    log = _log(tmp_path)
    log.console = Console(file=screen, force_terminal=True, width=60)
    with log:
        log.record({**RECORD, "split": "eval"})
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).splitlines()
    assert all(any(name in line for line in lines) for name in LOSSES)
    assert all(len(line.strip("\r")) <= 60 for line in lines)


def test_a_file_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with _log(tmp_path) as log:
        log.record(RECORD, seconds_left=72.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fine-tuning the captioner train: step 210/600  epoch 0.56  loss 4.906  ")
    assert line.endswith("lr 3.00e-03  186.4 images/s  1:12 left")
    assert (tmp_path / "log.txt").read_text().strip().endswith(line)
