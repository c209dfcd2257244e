"""CapFilt run again over data that have changed: changed chunks are done anew, the rest is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from capfilt_small import config, contents, make_image, output, rows_of, run, text_of, write_folder, write_tar

from openblip.bootstrap.job import Done
from openblip.bootstrap.models import open_models
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import Totals, decide_again
from openblip.bootstrap.summary import summarise
from openblip.core.errors import UserError
from openblip.data.sinks.tables import write_rows
from openblip.report import write_report
from openblip.report.capfilt import capfilt_report

Models = tuple[str, str, str]


@pytest.fixture(autouse=True)
def opened_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_models(models[0], models[1])
    monkeypatch.setattr("openblip.bootstrap.run.open_models", lambda *_, **__: opened)


def run_new(settings: object, target: Path, made: object) -> tuple[Totals, set[str]]:
    """Run, and name the chunks that were made."""
    names: set[str] = set()

    def note(done: Done, _totals: Totals) -> None:
        if done.new:
            names.add(done.chunk)

    return run(settings, target, made, on_chunk=note), names  # type: ignore[arg-type]


def add(web: Path) -> None:
    (web / "900.png").write_bytes(make_image(90))
    (web / "900.txt").write_text("two dogs")


def change_text(web: Path) -> None:
    before = (web / "010.txt").read_text()
    (web / "010.txt").write_text(before[:-2] + "z\n")
    assert (web / "010.txt").stat().st_size == len(before)


def change_image(web: Path) -> None:
    (web / "003.png").write_bytes(make_image(50, side=48))


def add_text(web: Path) -> None:
    with open(web / "001.txt", "a") as file:
        file.write("a dog\n")


def remove_last(web: Path) -> None:
    for number in range(14, 20):
        (web / f"{number:03d}.png").unlink()


def insert_first(web: Path) -> None:
    (web / "0.png").write_bytes(make_image(91))
    (web / "0.txt").write_text("two dogs")


def repair(web: Path) -> None:
    (web / "012.png").write_bytes(make_image(12))


CHUNKS = ("00000-00000", "00000-00001", "00000-00002")


@pytest.mark.parametrize(
    ("change", "anew", "samples"),
    [
        (add, CHUNKS[2:], 21),
        (change_text, CHUNKS[1:2], 20),
        (change_image, CHUNKS[:1], 20),
        (add_text, CHUNKS[:1], 20),
        (remove_last, CHUNKS[1:2], 14),
        (insert_first, CHUNKS, 21),
        (repair, CHUNKS[1:2], 20),
    ],
)
@pytest.mark.parametrize("layout", ["tars", "jsonl"])
def test_what_has_changed_is_done_anew(
    change: Callable[[Path], None], anew: tuple[str, ...], samples: int, layout: str, models: Models, tmp_path: Path
) -> None:
    web, made = write_folder(tmp_path / "web", 20), output(layout, threshold=0.2)
    (web / "012.png").write_bytes(b"<html>")
    settings, target = config(models, web), tmp_path / "clean"
    first, names = run_new(settings, target, made)
    assert (names, first.samples) == (set(CHUNKS), 20)
    write_report(Places(target).report, capfilt_report(target))
    kept = {name: Places(target).table(name).stat().st_mtime_ns for name in CHUNKS}
    change(web)
    totals, names = run_new(settings, target, made)
    assert names == set(anew)
    assert (totals.samples, totals.new_chunks, totals.quarantined) == (samples, len(anew), change is not repair)
    for name in set(CHUNKS) - set(anew):
        table = Places(target).table(name)
        assert not table.exists() or table.stat().st_mtime_ns == kept[name]
    run(settings, tmp_path / "new", made)
    assert contents(target) == contents(tmp_path / "new"), "not what a run from the start gives"
    stored = json.loads(Places(target).totals.read_text())
    assert (stored["samples"], stored["kept_texts"]) == (samples, totals.kept_texts)
    assert run_new(settings, target, made)[1] == set()


def test_a_tar_that_comes_later(models: Models, tmp_path: Path) -> None:
    web, made = tmp_path / "web", output(threshold=0.2)
    write_tar(web / "00000.tar", 0, 6)
    write_tar(web / "00001.tar", 6, 6)
    settings, target = config(models, web), tmp_path / "clean"
    run(settings, target, made)
    write_tar(web / "00002.tar", 12, 6)
    totals, names = run_new(settings, target, made)
    assert (names, totals.samples) == ({"00002-00000"}, 18)
    assert [row.key for row in rows_of(target)] == [f"0000{n // 6}/{n:09d}" for n in range(18)]
    (web / "00002.tar").unlink()
    totals, names = run_new(settings, target, made)
    assert (names, totals.samples, len(rows_of(target))) == (set(), 12, 12)
    assert not (target / "00002-00000.tar").exists()
    assert not Places(target).marker("00002-00000").exists()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_part_that_is_called_otherwise(kind: str, models: Models, tmp_path: Path) -> None:
    """Keys hold its name, and seeds the keys; a folder whose marks say nothing of names is seen through too."""
    web = tmp_path / "web"
    web.mkdir()
    for number, name in enumerate("ab"):
        if kind == "tar":
            write_tar(web / f"{name}.tar", 6 * number, 6)
        else:
            rows = [{"image": make_image(n), "caption": text_of(n)} for n in range(6 * number, 6 * number + 6)]
            write_rows(web / f"{name}.parquet", rows, {"image": "bytes", "caption": "string"})
    settings, target, made = config(models, web), tmp_path / "clean", output(threshold=0.2)
    run(settings, target, made)
    (web / f"b.{kind}").rename(web / f"c.{kind}")
    assert run_new(settings, target, made)[1] == {"00001-00000"}
    run(settings, tmp_path / "new", made)
    assert contents(target) == contents(tmp_path / "new"), "not what a run from the start gives"
    (web / f"c.{kind}").rename(web / f"d.{kind}")
    with pytest.raises(UserError, match="let openblip capfilt run again, which scores what has changed"):
        decide_again(target, output(threshold=0.0))
    run(settings, target, made)
    assert decide_again(target, output(threshold=0.0)).images == 12


def test_marks_that_are_broken_say_nothing(models: Models, tmp_path: Path) -> None:
    web, made = write_folder(tmp_path / "web", 20), output(threshold=0.2)
    settings, target = config(models, web), tmp_path / "clean"
    run(settings, target, made)
    before = contents(target)
    for name, content in zip(CHUNKS, (b"", b'{"output": nu', b"[]"), strict=True):
        Places(target).marker(name).write_bytes(content)
    assert summarise(target).samples == 20
    assert run_new(settings, target, made)[1] == set(CHUNKS)
    assert contents(target) == before
    Places(target).totals.write_bytes(b"")
    with pytest.raises(UserError, match="is not complete; let openblip capfilt finish first"):
        decide_again(target, made)
    assert run_new(settings, target, made)[1] == set()
    assert contents(target) == before
    for content in (b"", b"{}"):
        Places(target).run.write_bytes(content)
        for work in (lambda: run(settings, target, made), lambda: decide_again(target, made)):
            with pytest.raises(UserError, match=r"run\.json .*; choose a new folder, or delete .*clean$"):
                work()


def test_a_row_that_becomes_unreadable_is_seen(models: Models, tmp_path: Path) -> None:
    write_folder(tmp_path / "web", 6)
    lines = [json.dumps({"image": f"{n:03d}.png", "caption": text_of(n)}) for n in range(6)]
    table = tmp_path / "web" / "captions.jsonl"
    table.write_text("\n".join(lines) + "\n")
    settings, target = config(models, table), tmp_path / "clean"
    assert run(settings, target).quarantined == 0
    table.write_text("\n".join([*lines, '{"image": ']) + "\n")
    totals = run(settings, target)
    assert (totals.samples, totals.quarantined) == (7, 1)


def test_touched_and_copied_data_are_done(models: Models, tmp_path: Path) -> None:
    web = write_folder(tmp_path / "web", 10)
    settings, target = config(models, web), tmp_path / "clean"
    run(settings, target)
    shutil.copytree(web, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(web)
    shutil.move(tmp_path / "copy", web)
    assert run_new(settings, target, None)[1] == set()


def test_a_run_of_an_earlier_version_is_done(models: Models, tmp_path: Path) -> None:
    """Its marks say nothing of their samples."""
    web = write_folder(tmp_path / "web", 10)
    settings, target = config(models, web), tmp_path / "clean"
    run(settings, target)
    for marker in Places(target).marker("").parent.iterdir():
        content = json.loads(marker.read_text())
        assert content.pop("input")
        marker.write_text(json.dumps(content))
    assert run_new(settings, target, None)[1] == set()


def test_deciding_again_keeps_what_the_marks_say(models: Models, tmp_path: Path) -> None:
    web = write_folder(tmp_path / "web", 10)
    settings, target = config(models, web), tmp_path / "clean"
    run(settings, target)
    made = output(threshold=0.9)
    for place in (target, tmp_path / "other"):
        decide_again(target, made, target=place)
        assert run_new(settings, place, made)[1] == set()
    change_image(web)
    assert run_new(settings, target, made)[1] == {"00000-00000"}
    assert run_new(settings, tmp_path / "other", made)[1] == {"00000-00000"}


def test_a_part_that_cannot_be_opened_any_more_is_not_thrown_away(models: Models, tmp_path: Path) -> None:
    web = tmp_path / "web"
    write_tar(web / "00000.tar", 0, 2)
    whole = write_tar(web / "00001.tar", 2, 2).read_bytes()
    settings, target = config(models, web), tmp_path / "clean"
    run(settings, target)
    before = contents(target)
    (web / "00001.tar").write_bytes(b"\1" * 2000)
    with pytest.raises(UserError, match=r"00001\.tar was done before and cannot be opened now: .*make it readable"):
        run(settings, target)
    (web / "00001.tar").write_bytes(whole)
    assert run(settings, target).new_chunks == 0
    assert contents(target) == before


def test_deciding_again_without_the_parts_is_reported(models: Models, tmp_path: Path) -> None:
    web = tmp_path / "web"
    write_tar(web / "00000.tar", 0, 2)
    write_tar(web / "00001.tar", 2, 2)
    run(config(models, web), tmp_path / "clean")
    (web / "00001.tar").unlink()
    with pytest.raises(UserError, match="are gone since the run; let openblip capfilt run again"):
        decide_again(tmp_path / "clean", output("jsonl"))
