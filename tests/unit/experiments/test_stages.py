"""What is made once, under one set of settings, and the preset of short runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from openblip.core.config import keep_settings
from openblip.core.errors import UserError
from openblip.data.source_config import SourceConfig
from openblip.experiments.presets import scene_blip, short_train
from openblip.experiments.stages import once, trained
from openblip.recipes.small import SHORT_RUN


def test_a_result_is_made_once_or_again(tmp_path: Path) -> None:
    made = iter(({"a": 1}, {"a": 2}))
    path = tmp_path / "new" / "result.json"
    assert once(path, lambda: next(made)) == {"a": 1}
    assert once(path, lambda: next(made)) == {"a": 1}
    assert once(path, lambda: next(made), again=True) == {"a": 2}


def test_a_training_without_its_model_is_resumed_and_one_with_it_is_left_alone(tmp_path: Path) -> None:
    runs: list[Path] = []

    def train(run: Path) -> None:
        runs.append(run)
        if len(runs) == 2:  # the first one was stopped
            (run / "model").mkdir(parents=True)

    for _ in range(3):
        assert trained(tmp_path / "run", train) == tmp_path / "run" / "model"
    assert runs == [tmp_path / "run"] * 2


@dataclass(frozen=True)
class _Settings:
    steps: int = 3
    rates: tuple[float, ...] = (0.5, 0.25)


def test_other_settings_are_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    keep_settings(path, _Settings(), "a run")
    before = path.read_bytes()
    keep_settings(path, _Settings(), "a run")
    with pytest.raises(UserError, match=r"other settings \(steps: 3 -> 4\); choose another folder"):
        keep_settings(path, _Settings(steps=4), "a run")
    assert path.read_bytes() == before


def test_the_preset_fits_short_runs() -> None:
    assert (short_train(500).warmup_steps, short_train(20).warmup_steps) == (50, 4)
    assert short_train(500).fit_minutes is None
    timed = short_train(500, seconds=90, betas=(0.9, 0.9))
    assert (timed.fit_minutes, timed.max_steps, timed.betas) == (1.5, 500, (0.9, 0.9))
    run = scene_blip((SourceConfig(path="captions.jsonl"),), size="nano", steps=500, seed=3)
    assert run.train == short_train(500, seed=3)
    assert run.objective == SHORT_RUN
