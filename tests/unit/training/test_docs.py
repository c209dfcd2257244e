"""docs/training.md: its loop runs, and it names every option."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from openblip.training import TrainConfig

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "training.md").read_text(encoding="utf-8")


def test_every_option_is_named() -> None:
    missing = [field.name for field in dataclasses.fields(TrainConfig) if f"`{field.name}" not in PAGE]
    assert not missing


@pytest.mark.slow
def test_the_hand_written_loop_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 30
    torch.manual_seed(0)
    exec(compile(code, "docs/training.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert "loss_itm" in lines[-1]
    assert "nan" not in lines[-1]
