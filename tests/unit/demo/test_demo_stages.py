"""The demo from end to end in its smallest form: its stages, going on, its mistakes, its report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.core.errors import UserError
from openblip.core.files import read_jsonl
from openblip.demo import STAGES, DemoConfig, run_demo

SMALL = DemoConfig(
    web_pictures=40, human_pictures=40, test_pictures=12,
    pretrain_steps=3, captioner_steps=2, matcher_steps=2, batch_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, SMALL)
    return out


def test_every_stage_runs_and_the_report_shows_what_was_measured(finished: Path) -> None:
    assert {path.stem for path in (finished / "stages").iterdir()} == set(STAGES)
    measured = json.loads((finished / "stages" / "measure.json").read_text())
    for split in ("test", "novel"):
        assert measured[split]["pictures"] == 12
        assert 0 <= measured[split]["captioner"]["truth"] <= 1
        assert "itm_accuracy" not in measured[split]["captioner"]
        assert (
            0 <= measured[split]["matcher"]["t2i_recall_itm@1"] <= measured[split]["matcher"]["t2i_recall_itm@10"]
        )
        assert "truth" not in measured[split]["matcher"]
        assert 0.5 < measured[split]["retrieval_ceiling@1"] <= 1
    page = (finished / "report.html").read_text()
    assert f"{measured['test']['captioner_beam']['truth']:.0%}" in page
    assert "<script src=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_finished_stages_are_not_run_again_and_one_can_be_run_alone(finished: Path) -> None:
    marker = finished / "stages" / "pretrain.json"
    before = marker.read_bytes(), (finished / "pretrain" / "metrics.jsonl").read_bytes()
    (finished / "report.html").unlink()
    run_demo(finished, SMALL, only=("report",))
    assert (finished / "report.html").exists()
    run_demo(finished, SMALL)
    assert (marker.read_bytes(), (finished / "pretrain" / "metrics.jsonl").read_bytes()) == before


def test_a_stopped_stage_goes_on_where_it_was(finished: Path) -> None:
    # As left by a kill after the stage's last checkpoint, before its mark.
    (finished / "stages" / "captioner.json").unlink()
    run_demo(finished, SMALL)
    records = read_jsonl(finished / "captioner" / "metrics.jsonl")
    steps = [record["step"] for record in records if record["split"] == "train"]
    assert steps == sorted(set(steps))


def test_mistakes_are_told(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no stage "pretrian".*"pretrain"'):
        run_demo(tmp_path, SMALL, only=("pretrian",))
    with pytest.raises(UserError, match='needs "world" first'):
        run_demo(tmp_path, SMALL, only=("pretrain",))
    with pytest.raises(UserError, match=r"other settings.*pretrain_steps"):
        run_demo(finished, replace(SMALL, pretrain_steps=4))
