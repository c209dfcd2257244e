"""A run's folder becomes a report: curves from metrics.jsonl, clear words when there is no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from openblip.core.errors import UserError
from openblip.report import Chart, Charts, Details, Report, Series, Table, Text, render, run_report, save_figures


def record(step: int, split: str, **metrics: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "time": float(step), "split": split, **metrics}


def write_run(folder: Path, *, lift: float = 0.0, tail: str = "", **config: Any) -> Path:
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, 41):
        lines.append(record(step, "train", loss=5 - 0.1 * step, learning_rate=1e-4, images_per_second=100.0))
        if step % 10 == 0:
            metrics = {
                "loss": 5.2 - 0.1 * step,
                "recall@1": 0.01 * step + lift,
                "recall@5": 0.02 * step,
                "cider": 1.5,
            }
            lines.append(record(step, "eval", **metrics, **{"chance_recall@1": 0.005}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def charts_of(report: Report) -> dict[str, Chart]:
    charts = [c for s in report.sections for b in s.blocks if isinstance(b, Charts) for c in b.charts]
    return {chart.title: chart for chart in charts if isinstance(chart, Chart)}


def blocks_of(report: Report, kind: type[Any]) -> list[Any]:
    return [block for section in report.sections for block in section.blocks if isinstance(block, kind)]


def test_curves_hold_what_was_recorded(tmp_path: Path) -> None:
    report = run_report(write_run(tmp_path / "small"))
    charts = charts_of(report)
    assert set(charts) == {"Recall", "CIDEr", "Loss", "Learning rate", "Images per second"}
    recall = charts["Recall"]
    assert [series.name for series in recall.series] == ["@1", "@5"]
    assert recall.series[0].x == [1, 2, 3, 4]
    assert recall.series[0].y == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert (recall.unit, recall.reference, recall.x_label) == ("fraction", 0.005, "epoch")
    train, evaluated = charts["Loss"].series
    assert (train.name, train.role, len(train.x)) == ("train", "raw", 40)
    assert (evaluated.name, evaluated.role, evaluated.y) == ("eval", "line", pytest.approx([4.2, 3.2, 2.2, 1.2]))
    assert charts["Loss"].unit == charts["CIDEr"].unit == ""
    assert charts["Learning rate"].series[0].role == "line", "a schedule is not smoothed"


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    whole = run_report(write_run(tmp_path / "a" / "run"))
    cut = run_report(write_run(tmp_path / "b" / "run", tail='{"step": 41, "epoch": 4.1, "lo'))
    assert charts_of(cut) == charts_of(whole)


def test_headlines_begin_with_what_was_monitored(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small", train={"monitor": "cider", "monitor_mode": "max", "epochs": 20})
    report = run_report(folder, chance={"cider": 0.1})
    assert [head.label for head in report.headlines] == ["CIDEr", "Recall@1", "Time spent"]
    assert report.headlines[0].reference == 0.1
    assert report.headlines[1].value == pytest.approx(0.4)
    assert report.headlines[1].reference == 0.005
    assert report.headlines[2].value == 40
    assert "20 epochs were planned" in report.summary[0]
    (metrics,) = blocks_of(report, Table)
    row = next(row for row in metrics.rows if row[0] == "Recall@1")
    assert row == ["Recall@1", "40%", "40%", "4", "0.5%"]


def test_runs_lie_over_each_other(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", train={"learning_rate": 1e-4}, model={"width": 64})
    two = write_run(tmp_path / "two", lift=0.1, train={"learning_rate": 3e-4}, model={"width": 64})
    report = run_report(one, two)
    recall = charts_of(report)["Recall@1"]
    assert [(series.name, series.color) for series in recall.series] == [("one", 0), ("two", 1)]
    assert recall.series[1].y == pytest.approx([0.2, 0.3, 0.4, 0.5])
    (last,) = blocks_of(report, Table)
    assert [row[0] for row in last.rows] == ["one", "two"]
    column = [c.name for c in last.columns].index("Recall@1")
    assert [row[column] for row in last.rows] == pytest.approx([0.4, 0.5])
    changed = next(d for d in blocks_of(report, Details) if d.title.startswith("Settings of two"))
    assert [(fact.name, fact.value) for fact in changed.facts] == [("train.learning_rate", "0.0001 -> 0.0003")]
    with pytest.raises(UserError, match="named twice"):
        run_report(one, tmp_path / "two" / ".." / "one")


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    report = run_report(write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run"))
    assert report.subtitle == "a/run, b/run"


def test_skipped_samples_and_odd_files_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "small")
    broken = [{"key": "x<b>.jpg", "cause": "truncated", "detail": "12 bytes"}] * 2 + [
        {"key": "y", "cause": "missing"}
    ]
    (folder / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in broken) + '{"key"')
    (folder / "config.json").write_text("{ not json")
    (folder / "versions.json").write_text(
        json.dumps({"versions": {"torch": "2"}, "command": ["openblip", "train"]})
    )
    (folder / "log.txt").write_text("began\n")
    report = run_report(folder)
    (warning,) = blocks_of(report, Text)
    assert "3 broken samples were skipped" in warning.paragraphs[0]
    causes = blocks_of(report, Table)[1]
    assert [row[:2] for row in causes.rows] == [["truncated", 2], ["missing", 1]]
    facts = {fact.name: fact.value for details in blocks_of(report, Details) for fact in details.facts}
    assert facts == {"versions.torch": "2", "command": "openblip train"}
    assert "x<b>.jpg" not in render(report)


def test_a_run_that_only_trained_or_only_evaluated(tmp_path: Path) -> None:
    for split, title in (("train", "How it learned"), ("eval", "What it can do")):
        folder = tmp_path / split
        folder.mkdir()
        lines = [json.dumps(record(step, split, accuracy=0.5, bad=float("nan"))) + "\n" for step in (2, 3)]
        (folder / "metrics.jsonl").write_text("".join(lines))
        report = run_report(folder)
        assert title in [section.title for section in report.sections]
        assert charts_of(report)["Accuracy"].x_label == "step", "less than an epoch"
        assert "50%" in render(report)


def test_no_run_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        run_report(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no run.*name the folder that training wrote, or one of results"):
        run_report(tmp_path)
    write_run(tmp_path / "inner")
    with pytest.raises(UserError, match=r"holds no run.*the runs in it are inner"):
        run_report(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    for text in ("", '{"step": 1, "los', '{"note": "no step"}\n[1]\n'):
        (empty / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match="holds no records yet"):
            run_report(empty)
    (empty / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 1"):
        run_report(empty)


def test_long_runs_stay_small(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    lines = [record(step, "train", loss=1 / step) for step in range(1, 20_001)]
    (tmp_path / "long" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = run_report(tmp_path / "long")
    assert len(charts_of(report)["Loss"].series[0].x) == 600
    assert len(render(report)) < 100_000


def test_figures_are_files(tmp_path: Path) -> None:
    series = Series(name="a & b", x=[1, 2], y=[0.1, 0.2], spread=[0.1, 0.1])
    chart = Chart(title="Recall / R@1 <b>", series=[series], unit="fraction", reference=0.01)
    report = run_report(write_run(tmp_path / "small"))
    report.sections[0].blocks = [Charts(charts=[chart, chart])]
    report.sections[1:] = []
    files = save_figures(report, tmp_path / "figures")
    assert [path.name for path in files] == ["what-it-can-do-recall-r-1-b.svg", "what-it-can-do-recall-r-1-b-2.svg"]
    svg = "{http://www.w3.org/2000/svg}"
    for path in files:
        root = ElementTree.parse(path).getroot()
        assert (root.tag, root.get("aria-label")) == (f"{svg}svg", "Recall / R@1 <b>")
        assert [title.text for title in root.iter(f"{svg}title")] == ["a & b"]
        style = str(root.findtext(f"{svg}style"))
        assert "path.c0{stroke:#0069a8}" in style
        assert "var(" not in style
        assert not [group for group in root.iter(f"{svg}g") if group.get("class") == "hover"]
    report.sections[0].blocks = []
    with pytest.raises(UserError, match="no line charts"):
        save_figures(report, tmp_path)


def test_what_was_measured_once_is_a_row_and_no_curve(tmp_path: Path) -> None:
    lines = [record(1, "train", grad_norm=1.0), record(1, "eval", accuracy=0.25)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = run_report(tmp_path)
    assert set(charts_of(report)) == {"Gradient norm"}
    (table,) = blocks_of(report, Table)
    assert table.rows[0][:2] == ["Accuracy", "25%"]
    assert [head.label for head in report.headlines] == ["Accuracy", "Time spent"]


def test_a_loss_of_one_part_is_one_curve(tmp_path: Path) -> None:
    for name, parts, titles in (
        ("captioner", {"loss_lm": 2.0}, {"Loss LM"}),
        ("both", {"loss_lm": 1.0, "loss_itc": 1.0}, {"Loss", "Loss LM", "Loss ITC"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(record(1, "train", loss=2.0, **parts)) + "\n")
        report = run_report(tmp_path / name)
        assert set(charts_of(report)) == titles
        assert report.headlines == [], "the summary says how long it took"
