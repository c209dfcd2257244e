"""Results of evaluations as files, and the papers' tables out of many."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.data.cards import CARDS
from openblip.data.cards.targets import published_figures
from openblip.metrics.results import Figure, Result, joined_runs, predictions_of, read_results, write_result
from openblip.report import write_report
from openblip.report.results import results_report, results_tables
from openblip.report.tables import markdown


def result(**changes: Any) -> Result:
    made = Result(
        task="captioning",
        dataset="coco",
        split="test",
        model="runs/coco/model",
        family="blip",
        weights="0123456789abcdef",
        settings={"decode": {"num_beams": 3}},
        samples=5000,
        official=True,
        metrics={"BLEU-4": Figure(value=0.391), "CIDEr": Figure(value=1.321, spread=0.004, runs=3)},
        date="2026-11-28T12:00:00Z",
    )
    return replace(made, **changes)


def test_an_equal_evaluation_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    first = write_result(tmp_path, result(), [{"key": "1", "caption": "a dog"}])
    assert predictions_of(first).read_text() == '{"key": "1", "caption": "a dog"}\n'
    later = result(date="2026-11-29T12:00:00Z", model="elsewhere/model", metrics={"CIDEr": Figure(value=1.33)})
    assert write_result(tmp_path, later) == first
    assert read_results(tmp_path).results == [later]
    assert not predictions_of(first).exists(), "predictions of other figures"
    others = [
        write_result(tmp_path, other)
        for other in (
            result(weights="fedcba9876543210"),
            result(settings={"decode": {"num_beams": 5}}),
            result(limit=100, samples=100, official=False, partial="the first 100 of 5,000 samples"),
            result(split="val"),
        )
    ]
    assert len({first, *others}) == 5
    assert len(read_results(tmp_path).results) == 5
    foreign = tmp_path / f"{result(dataset='nocaps').name}.json"
    foreign.write_text('{"mine": 1}')
    written = write_result(tmp_path, result(dataset="nocaps"))
    assert written.name == f"{foreign.stem}-2.json"
    assert foreign.read_text() == '{"mine": 1}'
    assert write_result(tmp_path, result(dataset="nocaps")) == written


def test_foreign_and_broken_files_are_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_result(tmp_path, result())
    broken = json.loads(file.read_text())
    (tmp_path / "a-half.json").write_text(file.read_text()[:200])
    (tmp_path / "b-foreign.json").write_text('["of another program"]')
    (tmp_path / "c-later.json").write_text(json.dumps({**broken, "kind": "openblip-evaluation-9"}))
    del broken["task"]
    (tmp_path / "d-less.json").write_text(json.dumps(broken))
    (tmp_path / "e-typed.json").write_text(json.dumps({**broken, "task": "captioning", "samples": "many"}))
    found = read_results(tmp_path)
    assert len(found.results) == 1
    assert list(found.skipped) == ["a-half.json", "b-foreign.json", "c-later.json", "d-less.json", "e-typed.json"]
    for name, reason in (("a-half.json", "no JSON"), ("b-foreign.json", "no result"), ("c-later.json", "schema")):
        assert reason in found.skipped[name]
    assert '"task" is missing' in found.skipped["d-less.json"]
    assert '"samples" must be a whole number' in found.skipped["e-typed.json"]
    for _ in range(2):  # the page's own JSON is no result, and none that is skipped
        assert main(["report", str(tmp_path)]) == 0
        told = capsys.readouterr()
        assert told.err.count("openblip: skipped ") == 5
        assert "5 files skipped, 1 read" in told.err
        assert told.err.count("a-half.json") == 1
    assert "a-half.json" in (tmp_path / "report.html").read_text()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder of results"):
        read_results(tmp_path / "none")
    with pytest.raises(UserError, match="holds no result"):
        read_results(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is no JSON"):
        read_results(tmp_path)


def test_published_figures_of_the_cards_are_read() -> None:
    coco = {row.model: row.figures for row in published_figures(CARDS["coco"], "test")}
    assert coco["BLIP ViT-B, 129M, CapFilt-L"] in (
        {"BLEU-4": "39.7", "CIDEr": "133.3"},
        {"text": "81.2", "image recall@1": "64.1"},
    )
    assert {"CIDEr": "145.8"} in [row.figures for row in published_figures(CARDS["coco"], "test")]
    assert [row.figures for row in published_figures(CARDS["nlvr2"], "test1")] == [{"accuracy": "82.24"}]
    assert [row.figures for row in published_figures(CARDS["nlvr2"], "dev")] == [{"accuracy": "82.15"}]
    dev = {(row.model, row.remark): row.figures for row in published_figures(CARDS["vqav2"], "test-dev")}
    assert dev["BLIP-2 ViT-g, FlanT5-XL", "zero-shot"] == {"accuracy": "63.0"}
    assert dev["BLIP ViT-B, 129M, CapFilt-L", "fine-tuned"] == {"accuracy": "78.25"}
    assert published_figures(CARDS["coco"], "train") == []


def test_models_are_rows_and_published_figures_stand_beside() -> None:
    results = [
        result(),
        result(model="small", samples=100, official=False, partial="the first 100 of 5,000 samples"),
        result(
            task="retrieval", metrics={"i2t_recall_itm@1": Figure(value=0.8), "t2i_recall_itm@1": Figure(value=0.6)}
        ),
        result(task="captioning", dataset="photos/", split="", official=False, partial="no published split"),
    ]
    captions, retrieval, own = results_tables(results)
    lines = markdown(captions)
    assert lines[0] == "| model | BLEU-4 | CIDEr | samples |"
    # The best of the family by CIDEr is ViT-L, 40.4 and 136.7.
    assert lines[2] == "| runs/coco/model | 39.1 (-1.3) | 132.1 ± 0.4 (-4.6) | 5,000 |"
    assert lines[3].endswith("| 100, see note |")
    assert "Not comparable with published figures: small (the first 100 of 5,000 samples)." in captions.note
    assert "| BLIP ViT-L, 129M, fine-tuned | 40.4 | 136.7 | published |" in lines
    assert "| BLIP-2 ViT-g, OPT-2.7B, fine-tuned | \u2013 | 145.8 | published |" in lines
    assert "difference from the published BLIP ViT-L, 129M." in captions.note
    assert markdown(retrieval)[0] == "| model | TR@1 | IR@1 | samples |"
    assert markdown(own)[0] == "| model | BLEU-4 | CIDEr | samples |"
    assert len(markdown(own)) == 3


def test_recall_that_was_not_reranked_stands_beside_the_published() -> None:
    """A pre-training model that was measured with --rerank 0: no published recall is without ITM."""
    metrics = {"BLEU-4": 0.39, "CIDEr": 1.32, "i2t_recall@1": 0.5, "t2i_recall@1": 0.25}
    figures = {name: Figure(value=value) for name, value in metrics.items()}
    (table,) = results_tables([result(task="captioning and retrieval", metrics=figures)])
    lines = markdown(table)
    assert lines[0] == "| model | BLEU-4 | CIDEr | TR@1 by ITC | IR@1 by ITC | samples |"
    assert lines[2].endswith("| 50.0 | 25.0 | 5,000 |")
    assert "| BLIP ViT-L, 129M, fine-tuned | 40.4 | 136.7 | \u2013 | \u2013 | published |" in lines
    reranked = {f"{name[:3]}_recall_itm@1": Figure(value=0.8) for name in ("i2t", "t2i")}
    (table,) = results_tables([result(task="captioning and retrieval", metrics=figures | reranked)])
    assert markdown(table)[0] == "| model | TR@1 | IR@1 | BLEU-4 | CIDEr | samples |"


def test_a_published_figure_is_compared_with_its_own_protocol() -> None:
    """GQA's are LAVIS', which normalises; A-OKVQA's count questions that ours leave out; OK-VQA's are of lemmas."""
    gqa = {"accuracy_generated": Figure(value=0.40), "accuracy_generated, normalised": Figure(value=0.442)}
    asked = {"task": "answering", "family": "blip2"}
    (table,) = results_tables([result(dataset="gqa", split="testdev", metrics=gqa, **asked)])
    lines = markdown(table)
    assert lines[0] == "| model | accuracy, normalised | samples |"
    assert lines[2] == "| runs/coco/model | 44.2 (+0.0) | 5,000 |"

    direct = {"accuracy_ranked": Figure(value=0.5), "accuracy_ranked, difficult too": Figure(value=0.572)}
    (table,) = results_tables([result(task="answering", dataset="aokvqa", split="val", metrics=direct)])
    assert markdown(table)[2] == "| runs/coco/model | 57.2 (+1.0) | 5,000 |"
    assert any(line.endswith("| 56.2 | published |") for line in markdown(table))

    plain = {"accuracy_generated": Figure(value=0.4)}
    lemmas = plain | {"accuracy_generated, lemmas": Figure(value=0.407)}
    (table,) = results_tables([result(dataset="okvqa", split="val", metrics=plain, **asked)])
    assert markdown(table)[2] == "| runs/coco/model | 40.0 | 5,000 |"
    assert "--lemmas" in table.note
    (table,) = results_tables([result(dataset="okvqa", split="val", metrics=lemmas, **asked)])
    assert markdown(table)[2] == "| runs/coco/model | 40.7 (+0.0) | 5,000 |"


def test_runs_that_differ_by_their_seed_are_one_row_with_a_spread(tmp_path: Path) -> None:
    seeds = [
        result(model=f"runs/coco-seed{i}/model", weights=f"{i:016x}", metrics={"CIDEr": Figure(value=value)})
        for i, value in enumerate((1.30, 1.32, 1.37))
    ]
    others = [
        replace(seeds[0], weights="f" * 16, settings={"decode": {"num_beams": 5}}),  # decoded otherwise
        replace(seeds[0], model="runs/coco-3/model", weights="e" * 16),  # no number of a seed
        replace(seeds[0], model="copy/coco-seed0/model"),
    ]
    for one in (*seeds, *others):
        write_result(tmp_path, one)
    found = joined_runs([*seeds, *others, seeds[0]])
    assert len(found) == 5, "the same weights twice are no two runs"
    mean = found[0]
    assert mean.model == "runs/coco-seed*/model, 3 runs"
    assert mean.metrics["CIDEr"].value == pytest.approx(1.33)
    assert mean.metrics["CIDEr"].spread == pytest.approx(0.0360555)
    assert mean.metrics["CIDEr"].runs == 3
    assert found[1:] == [*others, seeds[0]]
    (table,) = results_tables(seeds)
    assert markdown(table)[2] == "| runs/coco-seed*/model, 3 runs | 133.0 ± 3.6 (-3.7) | 5,000 |"
    assert joined_runs([mean, seeds[0]]) == [mean, seeds[0]], "a mean is no run"


def test_dialogs_stand_beside_the_published_and_ranks_are_no_shares() -> None:
    names = ("mean_reciprocal_rank", "recall@1", "recall@5", "recall@10", "mean_rank")
    figures = {name: Figure(value=0.5) for name in names} | {"mean_rank": Figure(value=3.25)}
    dialogs = result(task="dialog", dataset="visdial", split="val", metrics=figures)
    own = result(task="dialog", dataset="mine.json", split="", metrics=figures)
    published, plain = results_tables([dialogs, own])
    lines = markdown(published)
    assert lines[0] == "| model | MRR | R@1 | R@5 | R@10 | mean rank | samples |"
    shown = "50.00 (-19.41) | 50.00 (-6.44) | 50.00 (-35.90) | 50.00 (-43.30) | 3.25 (+0.05)"
    assert lines[2] == f"| runs/coco/model | {shown} | 5,000 |"
    assert lines[3] == "| BLIP, fine-tuned | 69.41 | 56.44 | 85.90 | 93.30 | 3.20 | published |"
    assert markdown(plain)[2] == "| runs/coco/model | 50.0 | 50.0 | 50.0 | 50.0 | 3.2 | 5,000 |"


def test_the_page_has_every_table(tmp_path: Path) -> None:
    write_result(tmp_path, result())
    write_result(
        tmp_path, result(task="nlvr", dataset="nlvr2", split="dev", metrics={"accuracy": Figure(value=0.8)})
    )
    write_report(tmp_path / "page.html", results_report(read_results(tmp_path), "Results"))
    page = (tmp_path / "page.html").read_text()
    for text in ("coco:test, captioning", "nlvr2:dev, nlvr", "133.3", "82.15", "2 evaluations"):
        assert text in page
