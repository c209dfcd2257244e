"""Whatever is wrong with a sample is a row that says so; whatever is wrong with the whole is one sentence."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from capfilt_small import config, make_image, output, rows_of, run, write_folder, write_tar

from openblip.bootstrap.job import Shard
from openblip.bootstrap.run import decide_again, load_run
from openblip.core.errors import UserError
from openblip.data.sinks.tables import write_rows
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import names_files_in

Models = tuple[str, str, str]


def test_tars_with_every_fault(models: Models, tmp_path: Path) -> None:
    web = tmp_path / "web"
    whole = write_tar(web / "00000.tar", 0, 4).read_bytes()
    (web / "00001.tar").write_bytes(whole[: len(whole) // 2])  # cut
    (web / "00003.tar").write_bytes(b"not a tar at all" * 100)
    twice = write_tar(web / "00004.tar", 20, 2).read_bytes().rstrip(b"\0")
    padding = b"\0" * (-len(twice) % 512)
    (web / "00004.tar").write_bytes(twice + padding + twice + b"\0" * 2048)
    totals = run(config(models, web, captioner=""), tmp_path / "out")
    found: dict[str, list[str]] = {}
    for row in rows_of(tmp_path / "out"):
        found.setdefault(Path(row.part).name, []).append(row.status)
    assert found["00000.tar"] == ["ok"] * 4
    assert found["00001.tar"][0] == "truncated"
    assert set(found["00001.tar"][1:]) == {"ok"}
    assert found["00003.tar"] == ["unreadable"]
    assert found["00004.tar"].count("duplicate-key") == 2
    assert totals.samples == sum(map(len, found.values()))
    assert load_run(tmp_path / "out")[1]["missing_files"] == ["00002.tar"]


def test_a_tar_without_a_sample_of_use(models: Models, tmp_path: Path) -> None:
    """A row for each sample that is not, as in any other tar."""
    write_tar(tmp_path / "web" / "00000.tar", 0, 2)
    with tarfile.open(tmp_path / "web" / "00001.tar", "w") as tar:
        for number in range(3):
            tar.addfile(tarfile.TarInfo(f"{number}.txt"))
    tarfile.open(tmp_path / "web" / "00002.tar", "w").close()
    totals = run(config(models, tmp_path / "web", captioner=""), tmp_path / "out")
    found = [(Path(row.part).name, row.key, row.status) for row in rows_of(tmp_path / "out")]
    assert found[2:] == [
        *(("00001.tar", f"00001/{number}", "missing") for number in range(3)),
        ("00002.tar", "00002.tar", "unreadable"),
    ]
    assert (totals.samples, totals.quarantined) == (6, 4)
    assert run(config(models, tmp_path / "web", captioner=""), tmp_path / "out").new_chunks == 0


@pytest.mark.parametrize(
    ("pattern", "target", "refused"),
    [
        ("web/**/*.tar", "web/clean", True),
        ("web/*/*.tar", "web/clean", True),
        ("web/*/*.tar", "web/a/clean", False),
        ("web/{a,clean}/{000..009}.tar", "web/clean", True),
        ("web/{000..099}/{000..009}.tar", "web/clean", False),
        ("we[ab]/**", "web/clean/x", True),
        ("web/*.tar", "web/clean", False),
        ("web/*.tar", "clean", False),
        ("hf:web/*", "web/clean", False),
    ],
)
def test_a_target_that_the_source_would_read(
    pattern: str, target: str, refused: bool, models: Models, tmp_path: Path
) -> None:
    path = pattern if ":" in pattern else str(tmp_path / pattern)
    assert names_files_in(path, tmp_path / target) == refused
    if refused:
        with pytest.raises(UserError, match=r"names files in .*, which would be read; choose another folder"):
            run(config(models, path), tmp_path / target)


def test_images_with_every_fault(models: Models, tmp_path: Path) -> None:
    web = write_folder(tmp_path / "web", 6)
    (web / "000.png").write_bytes(b"")
    (web / "001.png").write_bytes(make_image(1)[:100])
    (web / "002.png").write_bytes(b"<html>404</html>")
    (web / "003.txt").write_bytes(b"\xff\xfe\xff")
    (web / "004.txt").write_text("\n \n")
    run(config(models, web, captioner=""), tmp_path / "out", output(threshold=0.0))
    rows = {row.key: row for row in rows_of(tmp_path / "out")}
    assert {key: row.status for key, row in rows.items()} == {
        "000.png": "empty", "001.png": "truncated", "002.png": "not-an-image", "003.png": "bad-text",
        "004.png": "ok", "005.png": "ok",
    }  # fmt: skip
    assert all(row.detail for row in rows.values() if row.status != "ok")
    assert [len(rows[key].texts) for key in ("004.png", "005.png")] == [0, 1]


def test_an_image_file_that_is_not_there(models: Models, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(make_image(1))
    lines = [{"image": "a.png", "caption": "two dogs"}, {"image": "gone.png", "caption": "birds"}]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{cut")
    run(config(models, tmp_path / "web.jsonl"), tmp_path / "out")
    assert [(row.key, row.status) for row in rows_of(tmp_path / "out")] == [
        ("web.jsonl line 3", "bad-row"), ("a.png", "ok"), ("gone.png", "missing"),
    ]  # fmt: skip


def test_an_image_that_goes_before_the_set_is_written(models: Models, tmp_path: Path) -> None:
    web = write_folder(tmp_path / "web", 3)
    run(config(models, web, captioner=""), tmp_path / "out", output("folder", threshold=0.0))
    (web / "001.png").unlink()
    (web / "001.png").mkdir()
    (web / "001.png" / "x.txt").write_text("")
    with pytest.raises(UserError, match="the source has changed"):
        decide_again(tmp_path / "out", output("tars", threshold=0.0))
    shutil.rmtree(web / "001.png")
    (web / "001.png").write_bytes(make_image(1))
    assert decide_again(tmp_path / "out", output("tars", threshold=0.0)).images == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing-here", "there is no file or folder"),
        ("t.parquet?text_column=alt", 'has no column "alt"'),
        ("urls.jsonl", "web addresses"),
        ("empty", "holds no images"),
    ],
)
def test_a_source_that_cannot_be_read(spec: str, words: str, models: Models, tmp_path: Path) -> None:
    write_rows(
        tmp_path / "t.parquet", [{"image": make_image(1), "text": "x"}], {"image": "bytes", "text": "string"}
    )
    (tmp_path / "urls.jsonl").write_text('{"url": "http://x/1.jpg", "caption": "x"}\n')
    (tmp_path / "empty").mkdir()
    path, _, column = spec.partition("?text_column=")
    source = SourceConfig(path=str(tmp_path / path), text_column=column)
    with pytest.raises(UserError, match=words):
        run(replace(config(models, "x"), source=source), tmp_path / "out")


def test_shares_that_are_none(models: Models) -> None:
    with pytest.raises(UserError, match="numbered from 0 to 1"):
        Shard(2, 2)
