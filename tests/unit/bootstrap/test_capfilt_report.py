"""The metrics of a run and the page about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from capfilt_small import config, output, rows_of, run, write_tar

from openblip.bootstrap.summary import BINS, Distinct, Summary, summarise
from openblip.core.errors import UserError
from openblip.report import read_report, write_report
from openblip.report.capfilt import capfilt_report

Models = tuple[str, str, str]


@pytest.fixture(scope="module")
def done(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_tar(folder / "web" / "00000.tar", 0, 15, bad={4: b"<html><script>alert(1)</script>"})
    write_tar(folder / "web" / "00002.tar", 0, 9)
    run(config(models, folder / "web"), folder / "out", output(threshold=0.5))
    return folder / "out"


@pytest.fixture(scope="module")
def summary(done: Path) -> Summary:
    return summarise(done)


def test_the_numbers_are_those_of_the_table(done: Path, summary: Summary) -> None:
    rows = rows_of(done)
    good = [row for row in rows if row.status == "ok"]
    assert (summary.samples, summary.good, summary.causes) == (24, 23, {"not-an-image": 1})
    for origin in ("web", "synthetic"):
        texts = [text for row in good for text in row.texts if text.origin == origin]
        assert summary.texts[origin] == Counter(text.reason for text in texts)
        assert summary.kept[origin] == sum(text.kept for text in texts)
        assert sum(summary.itm[origin]) == len(texts)
        below = sum(text.itm is not None and text.itm < 0.5 for text in texts)
        assert sum(summary.itm[origin][: BINS // 2]) == below
        assert summary.groups[origin].words == sum(len(text.text.split()) for text in texts)
    assert summary.agreement["none"] == sum(not row.kept for row in good)
    # The second tar repeats images of the first.
    assert summary.images.share == pytest.approx(len({row.image_hash for row in good}) / 23)
    assert summary.images.share < 0.8
    assert summary.seconds["write"] > 0


def test_examples_are_of_their_kind(done: Path, summary: Summary) -> None:
    assert max(map(len, summary.examples.values())) <= 12
    everything = summarise(done, examples=100).examples
    for kind, rows in everything.items():
        assert {row.key for row in summary.examples[kind]} <= {row.key for row in rows}
        for row in rows:
            kept = {text.origin for text in row.kept}
            assert (row.status != "ok") == (kind == "quarantined")
            if kind == "rescued":
                assert kept == {"synthetic"}
            elif kind == "disagreement":
                assert kept == {"web"}
            elif kind == "dropped":
                assert not kept
    assert sum(map(len, everything.values())) == 24


def test_the_page_says_what_became_of_each(done: Path, summary: Summary, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_report(page, capfilt_report(done))
    html = page.read_text()
    assert "<script>alert" not in html
    for row in summary.examples["rescued"]:
        assert row.key in html
    assert "not-an-image" in html
    assert "00001.tar" in html
    stored = read_report(page.with_suffix(".json"))
    assert stored.headlines[0].value == pytest.approx(summary.kept["web"] / 23)
    assert 'src="http' not in html


def test_a_page_without_its_source(done: Path, models: Models, tmp_path: Path) -> None:
    """Where the images are gone, the texts are still shown."""
    write_tar(tmp_path / "web" / "00000.tar", 0, 3)
    run(config(models, tmp_path / "web"), tmp_path / "out")
    (tmp_path / "web" / "00000.tar").unlink()
    from openblip.bootstrap.job import open_part

    open_part.cache_clear()
    report = capfilt_report(tmp_path / "out")
    assert any(section.title == "Examples" for section in report.sections)


def test_what_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder of openblip capfilt"):
        summarise(tmp_path)


def test_distinct_things_are_counted_beyond_what_is_kept() -> None:
    distinct = Distinct(most=200)
    for number in range(4000):
        distinct.add(f"text {number % 1000}")
    assert distinct.share == pytest.approx(0.25)
    assert len(distinct._counts) <= 200
