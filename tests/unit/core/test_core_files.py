"""Files appear whole or not at all: killed writers, full disks, cut lines, names that lead elsewhere."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from openblip.core import files
from openblip.core.errors import UserError
from openblip.core.files import (
    append_jsonl,
    atomic_path,
    read_jsonl,
    safe_join,
    write_bytes,
    write_folder,
    write_json,
    write_text,
    write_torch,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writing_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "één")
    write_text(path, "two")
    assert path.read_text(encoding="utf-8") == "two"
    write_bytes(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    write_json(path, {"ключ": [1, None]})
    assert '"ключ"' in path.read_text(encoding="utf-8")
    assert names(path.parent) == ["a.txt"]


def test_a_failure_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"the disk is full: .*a\.txt was not written .*untouched"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "step-1"
    with write_folder(target) as folder:
        (folder / "weights").write_text("old")

    def write() -> None:
        with write_folder(target) as folder:
            (folder / "weights").write_text("new")
            full_disk()

    with pytest.raises(UserError, match=r"the disk is full: .*step-1 was not written"):
        write()
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="the disk is full"), write_folder(target) as folder:
        (folder / "weights").write_text("new")
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["step-1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("size", [1, 100_000])
def test_tensors_on_a_full_disk_are_told(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and safetensors have errors of their own, which do not say it by a number."""
    (link := tmp_path / ".a.tmp").symlink_to("/dev/full")
    monkeypatch.setattr(files, "_beside", lambda *_: link)
    with (
        pytest.raises(UserError, match=r"the disk is full: .*a\.pth was not written"),
        atomic_path(tmp_path / "a.pth") as temporary,
    ):
        write_torch(temporary, {"a": torch.zeros(size)})
    assert names(tmp_path) == []


def test_other_errors_keep_their_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "file" / "inside", "x")
    assert not isinstance(caught.value, UserError)


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "run" / "best"
    for version in ("one", "two"):
        with write_folder(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / version).write_text(version)
            assert not (target / "sub" / version).exists()
    assert names(target / "sub") == ["two"]
    assert names(tmp_path / "run") == ["best"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["n" * 250, "\u20ac" * 80, "a.json"])
def test_long_names_and_writers_of_one_name(name: str, tmp_path: Path) -> None:
    """Two machines that share a disk may have processes of one number."""
    path = tmp_path / "file" / name
    with atomic_path(path) as first:
        first.write_text("first")
        with atomic_path(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        assert names(path.parent)[0].endswith(".tmp"), "what cleans up would not find it"
    assert path.read_text() == "first"
    folder = tmp_path / "folder" / name
    for text in ("first", "second"):
        with write_folder(folder) as target:
            (target / "a.txt").write_text(text)
    assert (folder / "a.txt").read_text() == "second"
    assert names(folder.parent) == [name]


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_jsonl(path) == []
    # A line separator inside a text is no end of a line.
    records = [{"text": "one\ntwo"}, {"text": "кот\u2028кит\x85drei"}, {"n": 3.5}]
    for record in records:
        append_jsonl(path, record)
    assert read_jsonl(path) == records


@pytest.mark.parametrize("cut", [1, 3, 8, 9, 10])
def test_a_last_line_cut_by_a_kill_is_left_out_and_then_overwritten(tmp_path: Path, cut: int) -> None:
    """Cut at any byte, in the middle of a character too; what is appended later stands on a line of its own."""
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"n": 1})
    append_jsonl(path, {"t": "кошка"})
    path.write_bytes(path.read_bytes()[:-cut])
    whole = cut == 1  # only the end of the line is missing
    assert read_jsonl(path) == [{"n": 1}, *([{"t": "кошка"}] if whole else [])]
    append_jsonl(path, {"n": 3})
    assert read_jsonl(path) == [{"n": 1}, *([{"t": "кошка"}] if whole else []), {"n": 3}]


def test_a_broken_line_in_the_middle_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(UserError, match=r"log\.jsonl line 2 is not JSON"):
        read_jsonl(path)


def test_appending_to_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_mend_last_line", full_disk)
    with pytest.raises(UserError, match="the disk is full"):
        append_jsonl(tmp_path / "log.jsonl", {"n": 1})


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "link/x"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads out of"):
        safe_join(root, name)


def test_names_inside_are_joined(tmp_path: Path) -> None:
    assert safe_join(tmp_path, "a/b.jpg") == tmp_path.resolve() / "a" / "b.jpg"
    assert safe_join(tmp_path, "a/../c") == tmp_path.resolve() / "c"
    assert safe_join(tmp_path, "..a") == tmp_path.resolve() / "..a"
