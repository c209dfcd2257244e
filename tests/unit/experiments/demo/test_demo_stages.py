"""The demo from end to end in its smallest form: its stages, continuing, its mistakes, its report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from openblip.bootstrap.job import Output
from openblip.bootstrap.places import Places
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.run import decide_again
from openblip.bootstrap.table import read_table
from openblip.cli.entry import main
from openblip.cli.make import DemoStage
from openblip.core.errors import UserError
from openblip.core.files import read_jsonl, write_json
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.truth import judge
from openblip.experiments import demo
from openblip.experiments.demo import STAGES, DemoPlan, run_demo
from openblip.experiments.demo.blip2_page import blip2_section
from openblip.experiments.demo.capfilt import PAGE
from openblip.experiments.demo.capfilt_page import capfilt_section
from openblip.report import Gallery, Table, Text

SMALL = DemoPlan(
    model="nano", web_images=40, human_images=40, simple_images=20, test_images=12,
    pretrain_steps=3, captioner_steps=2, matcher_steps=2, capfilt_images=40, again_steps=2, batch_size=8,
    documents=40, language_steps=(2, 2), blip2_images=40, stage1_steps=2, stage2_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, plan=SMALL)
    return out


@pytest.mark.parametrize(
    ("options", "folder", "minutes"),
    [([], "demo", 15), (["--quick"], "demo-quick", 2), (["--quick", "--minutes", "1"], "demo-quick", 1)],
)
def test_minutes_and_folder_of_the_command(
    options: list[str], folder: str, minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, float]] = []
    monkeypatch.setattr(demo, "run_demo", lambda out, minutes, **_: asked.append((out, minutes)))
    main(["demo", *options])
    assert asked == [(Path("runs") / folder, minutes)]


def test_every_stage_runs_and_the_report_shows_what_was_measured(finished: Path) -> None:
    assert {path.stem for path in (finished / "stages").iterdir()} == set(STAGES)
    measured = json.loads((finished / "stages" / "measure.json").read_text())
    for split in ("test", "novel"):
        assert measured[split]["images"] == 12
        assert 0 <= measured[split]["captioner"]["truth"] <= 1
        assert "itm_accuracy" not in measured[split]["captioner"]
        assert (
            0 <= measured[split]["matcher"]["t2i_recall_itm@1"] <= measured[split]["matcher"]["t2i_recall_itm@10"]
        )
        assert "truth" not in measured[split]["matcher"]
        assert 0.5 < measured[split]["retrieval_ceiling@1"] <= 1
    laid_out = list((finished / "world" / "novel-images").glob("*.png"))
    assert len(laid_out) == 12, "images for the commands that the last words name"
    page = (finished / "report.html").read_text()
    assert f"{measured['test']['captioner_beam']['truth']:.0%}" in page
    assert "<script src=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_blip2_is_asked_and_set_beside_what_knows_less_and_more(finished: Path) -> None:
    stages = ("zero-shot", "stage1")
    told = {name: json.loads((finished / "stages" / f"{name}.json").read_text()) for name in stages}
    assert told["stage1"]["trained_parameters"] > 0
    for split in ("test", "novel"):
        measured = told["zero-shot"][split]
        assert 0.1 < measured["guessing"]["all"] < 0.4
        for kind in ("decoder", "encoder-decoder"):
            assert set(measured[kind]) == {"blind", "told", "sees"}
            assert 0 <= measured[kind]["sees"]["answers_all"] <= 1
            assert set(measured[kind]["blind"]) <= set(measured["guessing"])
    section = blip2_section(finished, examples=2)
    (table, numbers) = (block for block in section.blocks if isinstance(block, Table))
    assert len(table.rows) == 7
    assert len(numbers.rows) == 11
    (gallery,) = (block for block in section.blocks if isinstance(block, Gallery))
    for card in gallery.cards:
        assert len(card.texts) > 3
        assert all(text.verdict in ("true", "partly", "false") for text in card.texts)


def test_finished_stages_are_not_run_again_and_one_can_be_run_alone(finished: Path) -> None:
    marker = finished / "stages" / "pretrain.json"
    before = marker.read_bytes(), (finished / "pretrain" / "metrics.jsonl").read_bytes()
    (finished / "report.html").unlink()
    run_demo(finished, plan=SMALL, only=("report",))
    assert (finished / "report.html").exists()
    run_demo(finished, plan=SMALL)
    assert (marker.read_bytes(), (finished / "pretrain" / "metrics.jsonl").read_bytes()) == before


def test_a_stopped_stage_goes_on_where_it_was(finished: Path) -> None:
    # As left by a kill after the stage's last checkpoint, before its mark.
    (finished / "stages" / "captioner.json").unlink()
    run_demo(finished, plan=SMALL)
    records = read_jsonl(finished / "captioner" / "metrics.jsonl")
    steps = [record["step"] for record in records if record["split"] == "train"]
    assert steps == sorted(set(steps))


def test_mistakes_are_reported(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'no stage "pretrian".*"pretrain"'):
        run_demo(tmp_path, plan=SMALL, only=("pretrian",))
    with pytest.raises(UserError, match='needs "world" first'):
        run_demo(tmp_path, plan=SMALL, only=("pretrain",))
    with pytest.raises(UserError, match=r"other settings.*pretrain_steps"):
        run_demo(finished, plan=replace(SMALL, pretrain_steps=4))


def test_the_web_is_cleaned_and_what_stays_is_judged(finished: Path) -> None:
    cleaned = json.loads((finished / "stages" / "capfilt.json").read_text())
    rows = [row for path in Places(finished / "clean").tables.glob("*.parquet") for row in read_table(path)]
    web = [(text, judge(text.text, scene_from_meta(row.meta)).true) for row in rows for text in row.texts[:1]]
    assert cleaned["samples"] == len(rows) == len(web) == SMALL.web_images
    assert cleaned["judged"]["true_web"] == pytest.approx(sum(true for _, true in web) / len(web))
    assert cleaned["judged"]["kept_web"] == pytest.approx(sum(text.kept for text, _ in web) / len(web))
    assert {row.meta["noise"][0] for row in rows} > {"clean"}
    assert (finished / PAGE).exists()
    assert f'href="{PAGE.as_posix()}"' in (finished / "report.html").read_text()


def test_it_is_told_that_capfilt_left_too_little_to_learn_from(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(finished, tmp_path / "demo")
    marker = out / "stages" / "capfilt.json"
    write_json(marker, {**json.loads(marker.read_text()), "images": SMALL.batch_size - 1})
    run_demo(out, plan=SMALL, only=("again",), again=True)
    assert "left out: CapFilt left 7 images, fewer than a batch of 8" in capsys.readouterr().out
    assert json.loads((out / "stages" / "again.json").read_text()).keys() == {"seconds"}


def test_two_new_models_learn_from_the_pairs_as_found_and_cleaned(finished: Path, tmp_path: Path) -> None:
    """Whatever models as short of training as these would keep: all stays here."""
    out = shutil.copytree(finished, tmp_path / "demo")
    shutil.rmtree(out / "again", ignore_errors=True)
    totals = decide_again(out / "clean", Output(policy=Policy(threshold=0.0)))
    marker = out / "stages" / "capfilt.json"
    write_json(marker, {**json.loads(marker.read_text()), "texts": totals.kept_texts, "images": totals.images})
    run_demo(out, plan=SMALL, only=("again",))
    again = json.loads((out / "stages" / "again.json").read_text())
    found, cleaned = again["as found"], again["cleaned"]
    assert found["steps"] == cleaned["steps"] == SMALL.again_steps
    losses = [read_jsonl(out / "again" / name / "metrics.jsonl")[0]["loss"] for name in ("web", "clean")]
    assert losses[0] != losses[1]
    section = capfilt_section(out)
    kinds = [type(block) for block in section.blocks]
    assert kinds[:4] == [Text, Table, Table, Table]
    assert set(kinds[4:]) == {Gallery}
    gallery = section.blocks[-1]
    assert isinstance(gallery, Gallery)
    for text in (text for card in gallery.cards for text in card.texts):
        assert (text.verdict, text.reason[:10]) == ("kept", "in truth: ")

    write_json(marker, {**json.loads(marker.read_text()), "images": 3})
    run_demo(out, plan=SMALL, only=("again",))
    sentences = capfilt_section(out).blocks[0]
    assert isinstance(sentences, Text)
    assert "too little" in sentences.paragraphs[1]


def test_the_command_knows_the_stages() -> None:
    assert get_args(DemoStage) == tuple(STAGES)
