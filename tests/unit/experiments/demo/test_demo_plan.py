"""The demo's plan: sizes for a time on machines of any speed, kept, and shared out anew as stages end."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.experiments.demo import plan as plans
from openblip.experiments.demo.config import DemoPlan, tars_of
from openblip.experiments.demo.plan import (
    SHARES,
    STAGE1_TRAINED,
    Calibration,
    make_plan,
    plan_rows,
    plan_table,
    planned,
    time_for,
)
from openblip.experiments.demo.stages import STAGES

FAST = Calibration(draw=0.002, step={"micro": 0.4, "nano": 0.1}, write=0.0015, seconds=4.0)
OLD = Calibration(draw=0.004, step={"micro": 2.5, "nano": 0.6}, write=0.008, seconds=20.0)


def test_shares_are_of_the_stages_and_sum_to_one() -> None:
    assert list(SHARES) == list(STAGES)
    assert sum(SHARES.values()) == pytest.approx(1.0)


def test_the_larger_model_is_trained_where_it_has_many_steps() -> None:
    fast, old = make_plan(60, FAST), make_plan(60, OLD)
    assert (fast.model, old.model) == ("micro", "nano")
    assert make_plan(300, OLD).model == "micro"
    assert make_plan(15, FAST).model == make_plan(2, FAST).model == "nano"
    assert fast.pretrain_steps > old.pretrain_steps > 100
    assert fast.human_images >= old.human_images


@pytest.mark.parametrize("timed", [FAST, OLD])
@pytest.mark.parametrize("minutes", [1, 2, 15, 60])
def test_the_plan_fits_the_time(minutes: float, timed: Calibration) -> None:
    plan = make_plan(minutes, timed)
    left = 60 * minutes - timed.seconds
    assert sum(plan.seconds.values()) == pytest.approx(left, abs=1)
    # The cost of pre-training is timed directly: it stays within its share (kept to a tenth of a second).
    assert plan.pretrain_steps * timed.step[plan.model] <= plan.seconds["pretrain"] + 0.1
    assert plan.test_images <= 200
    assert plan.capfilt_images <= plan.web_images


def test_what_went_before_the_calibration_counts() -> None:
    late, soon = make_plan(2, FAST, spent=20), make_plan(2, FAST)
    assert sum(late.seconds.values()) == pytest.approx(120 - 20 - FAST.seconds, abs=1)
    assert late.pretrain_steps < soon.pretrain_steps


def test_images_are_measured_in_the_time_for_it() -> None:
    """By what these stages took in a demo of two minutes: 8.7, 17 and 9.7 s for 200 images."""
    timed = Calibration(draw=0.0012, step={"micro": 0.395, "nano": 0.1075}, write=0.00076, seconds=2.9)
    plan = make_plan(2, timed)
    given = plan.seconds["measure"] + plan.seconds["zero-shot"] + (1 - STAGE1_TRAINED) * plan.seconds["stage1"]
    assert (8.7 + 17 + 9.7) / 200 * plan.test_images < 1.25 * given
    assert plan.test_images > 50


def test_more_time_never_does_less() -> None:
    for timed in (FAST, OLD):
        plans_of = [make_plan(minutes, timed) for minutes in (2, 5, 15, 60)]
        for shorter, longer in itertools.pairwise(plans_of):
            assert shorter.human_images <= longer.human_images
            assert shorter.test_images <= longer.test_images or shorter.model != longer.model


def test_a_plan_is_kept_and_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "calibrate", lambda minutes: FAST)
    first = planned(tmp_path, 15, 0)
    monkeypatch.setattr(plans, "calibrate", lambda minutes: OLD)
    assert planned(tmp_path, 15, 0) == first, "resumed on a busier machine, the plan stays"
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert kept["calibration"]["step"] == FAST.step
    assert {"machine", "versions", "minutes", "seed"} <= kept.keys()
    with pytest.raises(UserError, match=r"other settings.*minutes.*choose another folder"):
        planned(tmp_path, 20, 0)
    with pytest.raises(UserError, match=r"other settings.*seed"):
        planned(tmp_path, 15, 1)
    with pytest.raises(UserError, match=r"other settings.*pretrain_steps"):
        planned(tmp_path, 15, 0, replace(first, pretrain_steps=1))


def test_what_a_stage_takes_more_those_that_follow_take_less(tmp_path: Path) -> None:
    plan = make_plan(15, FAST)

    def left(stage: str) -> float:
        seconds = time_for(tmp_path, plan, stage)
        assert seconds is not None
        return seconds

    assert left("world") == pytest.approx(plan.seconds["world"])
    late = {name: 1.2 * plan.seconds[name] for name in ("world", "pretrain")}
    for name, seconds in late.items():
        write_json(tmp_path / "stages" / f"{name}.json", {"seconds": seconds})
    rest = [name for name in STAGES if name not in late]
    assert left("captioner") < plan.seconds["captioner"]
    whole = sum(late.values()) + left("captioner") / plan.seconds["captioner"] * sum(plan.seconds[n] for n in rest)
    assert whole == pytest.approx(sum(plan.seconds.values()))
    # However late it is, a stage gets a part of its share.
    write_json(tmp_path / "stages" / "captioner.json", {"seconds": 10_000})
    assert left("matcher") == pytest.approx(0.2 * plan.seconds["matcher"])
    assert time_for(tmp_path, replace(plan, seconds={}), "matcher") is None


def test_planned_stands_beside_reached(tmp_path: Path) -> None:
    plan = make_plan(15, FAST)
    reports = {
        "pretrain": {"seconds": 150.0, "steps": 370},
        "language": {"seconds": 40.0, "documents": 9, "steps": {"decoder": 11, "encoder-decoder": 12}},
        "stage2": {"seconds": 50.0, "decoder": {"steps": 3}, "encoder-decoder": {"steps": 4}},
        "measure": {"seconds": 20.0, "test": {"images": 200}},
    }
    for name, report in reports.items():
        write_json(tmp_path / "stages" / f"{name}.json", report)
    rows = {row.stage: row for row in plan_rows(tmp_path, plan)}
    assert list(rows) == list(STAGES)
    assert [rows[name].steps for name in reports] == [370, 23, 7, None]
    assert rows["pretrain"].planned_steps == plan.pretrain_steps
    assert rows["pretrain"].seconds == 150.0
    assert rows["captioner"].seconds is None
    assert [row[0] for row in plan_table(tmp_path, plan).rows] == list(STAGES)


def test_tars_hold_at_least_the_images_asked_for() -> None:
    assert tars_of(1) == tars_of(250) == "000000.tar"
    assert tars_of(251) == "{000000..000001}.tar"


def test_a_calibration_is_of_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and captions on it, in its dtype."""
    asked: list[Any] = []
    waited: list[torch.device] = []
    device = torch.device("cpu", 0)

    def choose_dtype(name: str, device: torch.device) -> torch.dtype:
        asked.append(device)
        return torch.float32

    monkeypatch.setattr(plans, "choose_device", lambda name: device)
    monkeypatch.setattr(plans, "choose_dtype", choose_dtype)
    monkeypatch.setattr(plans, "_wait", waited.append)
    plans._time_model("nano")
    assert asked == [device]
    assert waited == [device] * 6  # four steps, and captions twice


@pytest.mark.slow
def test_a_calibration_times_what_the_plan_needs() -> None:
    timed = plans.calibrate(0.01)
    assert 0 < timed.step["nano"] < timed.step["micro"]
    assert timed.draw > 0
    assert timed.write > 0
    assert isinstance(make_plan(2, timed), DemoPlan)
