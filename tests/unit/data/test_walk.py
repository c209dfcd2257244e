"""Folders as people have them: hidden and system files, links, files that are no images, texts of every ending."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_data import encoded, make_image

from openblip.core.errors import UserError
from openblip.data import formats
from openblip.data import walk as walk_module
from openblip.data.image_inputs import decoded, find_image_inputs, find_images
from openblip.data.images import decode_image
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig
from openblip.data.sources import open_source
from openblip.data.transforms import evaluation_transform
from openblip.data.walk import is_hidden, walk

HIDDEN = (
    *("._x.png", ".thumbs/x.png", ".DS_Store", "__MACOSX/x.png", "__MACOSX/a/._x.png", "Thumbs.db", "deep/._d.png"),
    *("deep/@eaDir/x.png", "$RECYCLE.BIN/x.png", "#recycle/x.png", "System Volume Information/x.png"),
)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40
MP4 = b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2" + b"\0" * 40


def put(folder: Path, *names: str, data: bytes | None = None) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(make_image(number), "PNG") if data is None else data)


def found_by_both(folder: Path) -> list[str]:
    """Names that training and `caption` find, which are the same."""
    source = open_source(str(folder))
    trained = [source[i].key for i in range(len(source))]
    assert find_images([folder]) == [str(folder / name) for name in trained]
    return trained


def test_hidden_and_system_files_are_out_for_all(tmp_path: Path) -> None:
    put(tmp_path, "x.png", "deep/d.png", "deep/1.2/e.png", "lost.png", *HIDDEN)
    assert found_by_both(tmp_path) == ["deep/1.2/e.png", "deep/d.png", "lost.png", "x.png"]
    assert [name for name in HIDDEN if not is_hidden(name)] == []
    assert not is_hidden("./a/../b.png")
    put(tmp_path / ".cache" / "set", "a.png")
    assert find_images([tmp_path / ".cache"]) == [str(tmp_path / ".cache" / "set" / "a.png")], "named, so read"


def test_hidden_files_match_no_glob(tmp_path: Path) -> None:
    put(tmp_path, "x.png", "deep/d.png", *HIDDEN)
    names = [str(tmp_path / name) for name in ("deep/d.png", "x.png")]
    assert find_images([f"{tmp_path}/**/*.png"]) == names
    assert find_images([f"{tmp_path}/**"]) == names
    assert find_images([f"{tmp_path}/*.png"]) == names[1:]
    assert find_images([f"{tmp_path}/*/*.png"]) == names[:1]
    assert find_images([f"{tmp_path}/__MACOSX/*.png"]) == [f"{tmp_path}/__MACOSX/x.png"]
    assert find_images([f"{tmp_path}/._*"]) == [f"{tmp_path}/._x.png"]


def test_a_file_named_like_a_glob_is_that_file(tmp_path: Path) -> None:
    put(tmp_path, "a[1].png", "a1.png")
    assert find_images([tmp_path / "a[1].png"]) == [str(tmp_path / "a[1].png")]


def test_hidden_files_in_tars_are_out_for_both(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("x.png", "__MACOSX/._x.png", "._x.png", ".thumbs/x.png", "@eaDir/x.png"):
            member = tarfile.TarInfo(name)
            data = encoded(make_image(1), "PNG")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert find_images([tmp_path / "a.tar"]) == [f"{tmp_path}/a.tar/x.png"]
    source = open_source(str(tmp_path / "a.tar"))
    assert [source[i].key for i in range(len(source))] == ["a/x"]


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path, "set/z/a.png", "set/top.png", "elsewhere/inner/b.png", "elsewhere/b2.png")
    folder = tmp_path / "set"
    (folder / "a_link").symlink_to(folder / "z")  # sorts before what it leads to, which keeps its own path
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "out2").symlink_to(tmp_path / "elsewhere" / "inner")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (tmp_path / "elsewhere" / "inner" / "up").symlink_to(tmp_path)
    (folder / "z" / "self").symlink_to(folder / "z")
    (folder / "root").symlink_to("/")
    (folder / "linked.png").symlink_to(tmp_path / "elsewhere" / "b2.png")
    (folder / "none.png").symlink_to(tmp_path / "gone.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    names = ["itself.png", "linked.png", "none.png", "out/b2.png", "out/inner/b.png", "top.png", "z/a.png"]
    assert found_by_both(folder) == names
    source = open_source(str(folder))
    causes = {}
    for index, name in enumerate(names):
        try:
            decode_image(source[index])
        except BrokenSample as broken:
            causes[name] = broken.cause
    assert causes == {"none.png": "missing", "itself.png": "unreadable"}
    assert walk(folder) == walk(folder)
    (through := tmp_path / "through").symlink_to(folder)
    assert found_by_both(through) == names
    plain = [
        "itself.png",
        "linked.png",
        "none.png",
        "top.png",
        "z/a.png",
    ]  # "**" goes down no links
    assert find_images([f"{folder}/**/*.png"]) == [str(folder / name) for name in plain]
    assert find_images([f"{folder}/o*/*.png"]) == [f"{folder}/out/b2.png", f"{folder}/out2/b.png"]


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", "b.jpeg", "notes.txt", "c.jfif")
    put(tmp_path, *(f"{number:02d}.heic" for number in range(12)), data=HEIC)
    put(tmp_path, "deep/x.JXL", data=JXL)
    put(tmp_path, "clip.mp4", data=MP4)
    put(tmp_path, "scan.pdf", "all.zip", "all.tar.gz", data=b"%PDF-1.4")
    source = open_source(str(tmp_path))
    assert [source[i].key for i in range(len(source))] == ["a.png", "b.jpeg", "c.jfif"]
    assert [bad.key for bad in source.bad_rows] == [*(f"{number:02d}.heic" for number in range(12)), "deep/x.JXL"]
    assert {bad.cause for bad in source.bad_rows} == {"unreadable"}
    pillow_heif = "install pillow-heif (pip install pillow-heif), or convert to JPEG"
    assert str(source.bad_rows[0].detail) == f"it is a HEIC image; {pillow_heif}"
    lines = source.describe()["left_out"]
    assert lines == [
        f"12 .heic files left out (00.heic, 01.heic, 02.heic, ...): HEIC images; {pillow_heif}",
        "1 .jxl file left out (deep/x.JXL): a JPEG XL image; install pillow-jxl-plugin (pip install "
        "pillow-jxl-plugin), or convert to JPEG",
        "1 .mp4 file left out (clip.mp4): a video; extract frames",
        "1 .pdf file left out (scan.pdf): a document; save the pages as images",
        "1 .tar.gz file left out (all.tar.gz): an archive; unpack",
        "1 .zip file left out (all.zip): an archive; unpack",
    ]
    found = find_image_inputs([tmp_path])
    assert len(found) == 3
    assert [line.replace(f"{tmp_path}/", "") for line in found.left_out.lines()] == lines
    matched = find_image_inputs([f"{tmp_path}/*.[hp]*"])
    assert [line.partition(" left")[0] for line in matched.left_out.lines()] == ["12 .heic files", "1 .pdf file"]


def test_a_folder_of_such_files_alone_says_so(tmp_path: Path) -> None:
    put(tmp_path, "a.heic", data=HEIC)
    for opened in (lambda: open_source(str(tmp_path)), lambda: find_image_inputs([tmp_path])):
        with pytest.raises(UserError, match=r"1 \.heic file left out .*\): a HEIC image; install pillow-"):
            opened()


def test_plugins_that_are_there_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    there = formats.importlib.util.find_spec
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: name == "pillow_heif" or there(name))
    readable, others = formats._here()
    assert (".heic" in readable, ".heic" in others) == (True, False)
    assert (".jxl" in readable, ".jxl" in others) == (False, True)
    monkeypatch.setattr(formats.features, "check", lambda name: name != "avif")
    readable, others = formats._here()
    assert (".avif" in others, ".jp2" in readable) == (True, True)


def test_a_folder_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.png", "closed/b.png")
    entries = walk_module._entries

    def refused(place: str) -> object:
        if place.endswith("closed"):
            raise PermissionError(13, "Permission denied", place)
        return entries(place)

    monkeypatch.setattr(walk_module, "_entries", refused)
    source = open_source(str(tmp_path))
    assert len(source) == 1
    (bad,) = source.bad_rows
    assert bad.key == str(tmp_path / "closed")
    assert "Permission denied" in bad.detail
    assert find_image_inputs([tmp_path]).left_out.lines() == [f"{bad.key} left out: {bad.detail}"]


def test_a_pipe_among_images_does_not_hang(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert found_by_both(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("ending", "expected"),
    [(".txt", "one"), (".TXT", "one"), (".Txt", "one"), (".caption", "one"), (".CAPTION", "one"), (".cap", "one")],
)
def test_texts_of_every_ending(tmp_path: Path, ending: str, expected: str) -> None:
    put(tmp_path, "a.PNG", "deep/b.png")
    (tmp_path / f"a{ending}").write_bytes("\ufeffone\r\ntwo\u2028halves\x0c\n\n three \n".encode())
    source = open_source(str(tmp_path))
    assert source[0].texts == (expected, "two\u2028halves", "three")
    assert source[1].texts == ()
    assert source.text_counts().tolist() == [3, 0]


def test_text_column_chooses_the_ending(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    for name, text in (
        ("a.txt", "from txt"),
        ("a.caption", "from caption"),
        ("a.Tags", "red, bus"),
        ("b.tags", "x"),
    ):
        (tmp_path / name).write_text(text)
    assert open_source(str(tmp_path))[0].texts == ("from txt",)
    for given in ("tags", ".tags", "TAGS"):
        source = open_source(SourceConfig(path=str(tmp_path), text_column=given))
        assert [source[i].texts for i in range(2)] == [("red, bus",), ("x",)]
    assert open_source(f"{tmp_path}?text_column=caption")[0].texts == ("from caption",)
    with pytest.raises(UserError, match=r'no image in .* ends in "\.tagz" beside it \(did you mean "tags"\?\)'):
        open_source(f"{tmp_path}?text_column=tagz")


def test_a_text_of_any_ending_beside_an_image_makes_a_folder_of_images(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.Caption").write_text("a cat")
    (tmp_path / "notes.csv").write_text("day,weather\n1,rain\n")
    assert open_source(str(tmp_path))[0].texts == ("a cat",)


def test_a_text_that_is_no_text_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").mkdir()
    source = open_source(str(tmp_path))
    with pytest.raises(BrokenSample) as caught:
        source[0]
    assert caught.value.cause == "bad-text"
    assert "a.txt is not UTF-8 text: byte 3 (0xe9)" in caught.value.detail
    assert source[1].texts == ()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HEIC, "it is a HEIC image; install pillow-heif"),
        (JXL, "it is a JPEG XL image; install pillow-jxl-plugin"),
        (MP4, "it is a video; extract frames"),
        (b"%PDF-1.7\n", "it is a document; save the pages as images"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is a vector drawing; convert to PNG or JPEG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "it is a vector drawing"),
        (b"8BPS\0\x01", "it is a Photoshop image; convert"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "it is a git-lfs pointer"),
        (b"<!DOCTYPE html><html>404", "it is an HTML page"),
        (b"PK\x03\x04", "it is a zip archive"),
        (b"hello there, I am text", 'it begins with "hello there, I a"'),
    ],
)
def test_a_file_that_is_no_image_is_named(data: bytes, expected: str, tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", data=data)
    (batch,) = decoded(find_image_inputs([tmp_path / "a.jpg"]), evaluation_transform(16), batch_size=1)
    (broken,) = batch.broken
    assert (broken.cause, broken.key) == ("not-an-image", str(tmp_path / "a.jpg"))
    assert broken.detail.startswith(expected)


@pytest.mark.skipif(not formats.features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_and_jpeg_2000_are_read(tmp_path: Path) -> None:
    for kind, ending in (("AVIF", ".avif"), ("JPEG2000", ".jp2"), ("JPEG2000", ".JPX")):
        put(tmp_path, f"a{ending}", data=encoded(make_image(200), kind))
    assert len(found_by_both(tmp_path)) == 3
    for name in found_by_both(tmp_path):
        assert np.allclose(np.asarray(decode_image(tmp_path / name))[15, 20], (200, 55, 7), atol=8)


def test_captions_files_name_files_that_are_not_utf_8(tmp_path: Path) -> None:
    """As `caption` itself writes them: JSON escapes what the system keeps in names."""
    names = [os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"caf\xe8.png")]
    put(tmp_path, *names)
    if sorted(os.listdir(os.fsencode(tmp_path))) != [b"caf\xe8.png", b"caf\xe9.png"]:
        pytest.skip("this file system keeps no such names")
    rows = [{"image": name, "caption": str(n), "image_id": 7} for n, name in enumerate(names)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for spec in (f"{tmp_path}/a.jsonl", f"{tmp_path}/a.jsonl?meta_columns=image"):
        source = open_source(spec)
        assert [source[i].key for i in range(len(source))] == names
        assert len({source[i].image_id for i in range(len(source))}) == 2
        for i in range(2):
            decode_image(source[i])


def test_parquet_whose_texts_are_not_utf_8(tmp_path: Path) -> None:
    put(tmp_path, "0.png", "1.png")
    latin = pa.array([b"caf\xe9", b"plain"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": ["0.png", "1.png"], "caption": latin}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    with pytest.raises(BrokenSample) as caught:
        source[0]
    assert (caught.value.cause, caught.value.key) == ("bad-text", "0.png")
    assert source[1].texts == ("plain",)
