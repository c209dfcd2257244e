"""CapFilt without a filter: every text stays, for collections that are to be captioned and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from capfilt_small import config, output, rows_of, run, text_of, write_tar

from openblip.bootstrap.job import CapFiltConfig
from openblip.bootstrap.run import decide_again
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.report.capfilt import capfilt_report

Models = tuple[str, str, str]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    write_tar(folder / "00000.tar", 0, 10, bad={5: b"<html>"})
    return folder


@pytest.fixture(scope="module")
def done(web: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("runs") / "written"
    run(config(models, web, filter=""), target, output(name="all"))
    return target


def test_texts_are_those_of_a_run_with_a_filter_and_all_stay(
    done: Path, web: Path, models: Models, tmp_path: Path
) -> None:
    run(config(models, web), tmp_path / "both")
    for own, other in zip(rows_of(done), rows_of(tmp_path / "both"), strict=True):
        assert (own.key, own.status) == (other.key, other.status)
        assert [text.text for text in own.texts] == [text.text for text in other.texts]
        assert own.captioner == other.captioner
        assert (own.filter, bool(other.filter)) == ("", other.status == "ok")
        assert all(text.itm is None and text.itc is None for text in own.texts)
        assert {text.reason for text in own.texts} <= {"unjudged", "repeated", "no-words"}
    source = open_source(str(done))
    assert len(source) == 9
    assert source[0].texts[0] == text_of(0)


def test_the_captions_alone_are_written(done: Path, tmp_path: Path) -> None:
    totals = decide_again(done, output(name="all", origins=("synthetic",)), target=tmp_path / "captions")
    assert totals.images == 9
    wanted = [[text.text for text in row.kept] for row in rows_of(tmp_path / "captions") if row.kept]
    assert all(text.origin == "synthetic" for row in rows_of(tmp_path / "captions") for text in row.kept)
    source = open_source(str(tmp_path / "captions"))
    assert [list(source[index].texts) for index in range(len(source))] == wanted


def test_policies_by_scores_are_refused(done: Path, web: Path, models: Models, tmp_path: Path) -> None:
    told = 'the policy "paper" could decide by; the policy "all" keeps every text'
    with pytest.raises(UserError, match=told):
        decide_again(done, output(), target=tmp_path / "a")
    with pytest.raises(UserError, match=told):
        run(config(models, web, filter=""), tmp_path / "b", output())
    with pytest.raises(UserError, match="name a filter, which judges texts, a captioner"):
        CapFiltConfig(source=SourceConfig(path=str(web)))


def test_a_rank_by_what_nobody_noted_is_refused(web: Path, models: Models, tmp_path: Path) -> None:
    run(config(models, web), tmp_path / "judged")
    by_ranker = output(name="blip2", rank_by="ranker")
    with pytest.raises(UserError, match="no similarities of a ranker to rank by"):
        decide_again(tmp_path / "judged", by_ranker, target=tmp_path / "a")
    with pytest.raises(UserError, match="the run was made without --ranker"):
        run(config(models, web), tmp_path / "b", by_ranker)


def test_its_report_has_no_scores(done: Path) -> None:
    report = capfilt_report(done)
    assert report.subtitle.endswith("10 samples, captions written")
    blocks = [block for section in report.sections for block in section.blocks]
    titles = [chart.title for block in blocks for chart in getattr(block, "charts", [])]
    assert titles == ["Words in a text"]
    assert "every text of a wanted origin stays." in " ".join(report.summary)
    assert "kept only by" not in " ".join(report.summary)


def test_the_command(web: Path, models: Models, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["capfilt", str(web), str(tmp_path / "out"), "--captioner", models[0], "--device", "cpu"]
    assert main([*command, "--origins", "synthetic", "--layout", "jsonl"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert len(lines) > 0
    assert (tmp_path / "out" / "capfilt" / "report.html").is_file()
    capfd.readouterr()
    assert main([*command[:2], str(tmp_path / "no"), *command[3:], "--dry-run", "--gpu", "h100"]) == 0
    told = capfd.readouterr().out
    assert "captioner" in told
    assert "filter" not in told
    assert main([*command[:2], str(tmp_path / "no"), *command[3:], "--threshold", "0.9"]) == 2
    assert "--threshold is for what a filter says" in capfd.readouterr().err
    assert main([*command[:2], str(tmp_path / "no"), *command[3:], "--policy", "paper", "--dry-run"]) == 2
    assert 'the policy "all" keeps every text' in capfd.readouterr().err
    assert main(["capfilt", "decide", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    capfd.readouterr()
    assert main(["capfilt", str(web), str(tmp_path / "no"), "--device", "cpu"]) == 2
    assert "name a --filter, which judges texts" in capfd.readouterr().err
