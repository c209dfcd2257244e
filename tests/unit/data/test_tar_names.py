"""Which files of a tar are one sample: dots in names, several images of a key, texts that lie elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from make_data import contents, encoded, make_image

from openblip.core.errors import UserError
from openblip.data.source_config import SourceConfig
from openblip.data.sources import open_source


def pack(path: Path, files: dict[str, Any]) -> str:
    """A tar of `files` in their order: a number is its image (PNG), a dict JSON, a text itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if isinstance(content, int):
                content = encoded(make_image(content))
            elif isinstance(content, dict):
                content = json.dumps(content).encode()
            elif isinstance(content, str):
                content = content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def read(spec: str | SourceConfig) -> tuple[list[tuple[str, tuple[str, ...]]], list[int]]:
    source = open_source(spec)
    return [(source[i].key, source[i].texts) for i in range(len(source))], [n for n, _, _ in contents(source)]


@pytest.mark.parametrize(
    ("files", "samples", "numbers"),
    [
        pytest.param(
            {"a.b.png": 1, "a.b.txt": "one", "a.c.png": 2, "a.c.txt": "two", "d.png": 3, "d.txt": "three"},
            [("t/a.b", ("one",)), ("t/a.c", ("two",)), ("t/d", ("three",))],
            [1, 2, 3],
            id="dots",
        ),
        pytest.param({"a.b.png": 1, "a.b.txt": "one"}, [("t/a.b", ("one",))], [1], id="one name with a dot"),
        pytest.param(
            {"photo.v1.png": 1, "photo.v2.png": 2, "photo.v3.png": 3},
            [("t/photo.v1", ()), ("t/photo.v2", ()), ("t/photo.v3", ())],
            [1, 2, 3],
            id="versions without texts",
        ),
        pytest.param(
            {"photo.png": 1, "photo.txt": "one", "photo.v2.png": 2, "photo.v2.txt": "two"},
            [("t/photo", ("one",)), ("t/photo.v2", ("two",))],
            [1, 2],
            id="a version beside the plain one",
        ),
        pytest.param(
            {
                "photo.png": 1,
                "photo.json": {"caption": "one"},
                "photo.v2.png": 2,
                "photo.v2.json": {"caption": "two"},
            },
            [("t/photo", ("one",)), ("t/photo.v2", ("two",))],
            [1, 2],
            id="versions with JSON",
        ),
        pytest.param(
            {f"2024.01.05_{n}.{e}": n if e == "png" else f"t{n}" for n in range(4) for e in ("png", "txt")},
            [(f"t/2024.01.05_{n}", (f"t{n}",)) for n in range(4)],
            [0, 1, 2, 3],
            id="dates",
        ),
        pytest.param(
            {"2024.1.png": 1, "2024.2.png": 2, "2024.2.txt": "two", "2024.4.txt": "four"},
            [("t/2024.1", ()), ("t/2024.2", ("two",))],
            [1, 2],
            id="dates with gaps",
        ),
        pytest.param({"a.b.PNG": 1, "a.b.TXT": "one"}, [("t/a.b", ("one",))], [1], id="capitals"),
        pytest.param(
            {"1.png": 1, "1.cls": "4", "1.seg.png": 9, "1.txt": "one", "2.seg.png": 9, "2.png": 2, "2.txt": "two"},
            [("t/1", ("one",)), ("t/2", ("two",))],
            [1, 2],
            id="compound names",
        ),
        pytest.param({"1.seg.png": 4, "1.txt": "one"}, [("t/1", ("one",))], [4], id="compound alone"),
        pytest.param(
            {"1.image.png": 1, "1.caption.txt": "one", "1.meta.json": {}},
            [("t/1", ("one",))],
            [1],
            id="all compound",
        ),
        pytest.param(
            {"1.left.png": 1, "1.right.png": 2, "1.caption.txt": "one"},
            [("t/1", ("one",))],
            [1],
            id="two views, text by name",
        ),
        pytest.param(
            {"x/1.png": 1, "x/1.txt": "one", "y/1.png": 2, "y/1.txt": "two"},
            [("t/x/1", ("one",)), ("t/y/1", ("two",))],
            [1, 2],
            id="folders",
        ),
    ],
)
def test_names_with_dots(tmp_path: Path, files: Any, samples: Any, numbers: list[int]) -> None:
    assert read(pack(tmp_path / "t.tar", files)) == (samples, numbers)


def test_texts_after_all_images(tmp_path: Path) -> None:
    files = {f"{n}.png": n for n in range(3)} | {f"{n}.txt": f"t{n}" for n in (2, 0, 1)}
    source = open_source(pack(tmp_path / "t.tar", files))
    assert [(n, texts) for n, texts, _ in contents(source)] == [(n, (f"t{n}",)) for n in range(3)]
    assert source.bad_rows == []
    before = {f"{n}.txt": f"t{n}" for n in range(3)} | {f"{n}.png": n for n in range(3)}
    assert [texts for _, texts, _ in contents(open_source(pack(tmp_path / "b.tar", before)))] == [
        ("t0",),
        ("t1",),
        ("t2",),
    ]


def test_a_key_twice_keeps_its_first_files(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    pack(path, {"1.png": 1, "1.txt": "one", "2.png": 2})
    pack(tmp_path / "more.tar", {"1.png": 9, "1.txt": "nine", "2.txt": "two"})
    with tarfile.open(path, "a") as tar, tarfile.open(tmp_path / "more.tar") as more:
        for member in more:
            tar.addfile(member, more.extractfile(member))
    source = open_source(str(path))
    assert [(n, texts) for n, texts, _ in contents(source)] == [(1, ("one",)), (2, ("two",))]
    assert [(bad.cause, bad.key) for bad in source.bad_rows] == [("duplicate-key", "t/1")]


def test_several_images_of_a_key(tmp_path: Path) -> None:
    files = {}
    for n in range(2):
        files |= {f"{n}.right.png": 10 + n, f"{n}.left.png": 20 + n, f"{n}.txt": f"t{n}"}
    path = pack(tmp_path / "t.tar", files)
    source = open_source(path)
    assert [n for n, _, _ in contents(source)] == [20, 21]
    (told,) = source.bad_rows
    assert (told.cause, told.key) == ("several-images", "t")
    assert told.detail == (
        "2 samples hold several images: left.png, right.png, of which left.png is read; "
        "image_column chooses another"
    )
    for name, number in [("right.png", 10), ("right", 10), (".RIGHT.png", 10), ("left", 20), ("mid;right", 10)]:
        chosen = open_source(SourceConfig(path=path, image_column=name))
        assert [(n, texts) for n, texts, _ in contents(chosen)] == [(number, ("t0",)), (number + 1, ("t1",))]
        assert chosen.bad_rows == []
    with pytest.raises(UserError, match=r'no image with the ending "rihgt\.png".*did you mean "right\.png"'):
        open_source(SourceConfig(path=path, image_column="rihgt.png"))


def test_the_order_of_files_does_not_choose_the_image(tmp_path: Path) -> None:
    for name, files in (
        ("a", {"1.png": 1, "1.jpg": 2, "1.seg.jpg": 3}),
        ("b", {"1.seg.jpg": 3, "1.jpg": 2, "1.png": 1}),
    ):
        source = open_source(pack(tmp_path / f"{name}.tar", files))
        assert [n for n, _, _ in contents(source)] == [2]
        assert [bad.cause for bad in source.bad_rows] == ["several-images"]
    chosen = open_source(SourceConfig(path=str(tmp_path / "a.tar"), image_column="png"))
    assert [n for n, _, _ in contents(chosen)] == [1]


def test_samples_without_the_chosen_image_are_reported(tmp_path: Path) -> None:
    path = pack(tmp_path / "t.tar", {"0.seg.png": 1, "0.png": 2, "1.png": 3})
    source = open_source(SourceConfig(path=path, image_column="seg.png"))
    assert [n for n, _, _ in contents(source)] == [1]
    assert [(bad.cause, bad.key, bad.detail) for bad in source.bad_rows] == [
        ("missing", "t/1", 'no image "seg.png" among png')
    ]


def test_text_columns_of_tars(tmp_path: Path) -> None:
    path = pack(
        tmp_path / "t.tar", {"0.png": 1, "0.long.txt": "long", "0.txt": "short", "0.json": {"alt": "field"}}
    )
    for column, text in (("", "short"), ("long", "long"), ("long.txt", "long"), ("alt", "field")):
        assert read(SourceConfig(path=path, text_column=column))[0][0][1] == (text,)
    with pytest.raises(UserError, match=r'have no "lang"'):
        open_source(SourceConfig(path=path, text_column="lang"))


def test_lines_of_a_text_end_at_newlines_alone(tmp_path: Path) -> None:
    path = pack(tmp_path / "t.tar", {"0.png": 1, "0.txt": "\ufeffone\u2028still\x0bone\r\ntwo\n"})
    assert read(path)[0] == [("t/0", ("one\u2028still\x0bone", "two"))]


def test_ids_in_tars(tmp_path: Path) -> None:
    files = {}
    for n, image_id in enumerate([None, float("nan"), "", 7, 7.0]):
        files |= {f"{n}.png": n, f"{n}.json": {"caption": "x", "image_id": image_id}}
    files |= {"5.png": 5, "5.json": {"caption": "x"}, "6.png": 6, "6.txt": "x"}
    source = open_source(SourceConfig(path=pack(tmp_path / "t.tar", files), id_column="image_id"))
    assert [source[i].image_id for i in range(7)] == ["t/0", "t/1", "t/2", "7", "7", "t/5", "t/6"]


def test_tars_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for number, folder in enumerate(("cc3m", "sbu")):
        pack(tmp_path / folder / "00000.tar", {"0.png": number, "0.txt": folder})
    source = open_source(str(tmp_path / "{cc3m,sbu}" / "{00000..00001}.tar"))
    assert [(source[i].key, source[i].image_id) for i in range(2)] == [
        ("cc3m/00000/0", "cc3m/00000/0"),
        ("sbu/00000/0", "sbu/00000/0"),
    ]


def test_names_that_are_not_utf8_stay_apart(tmp_path: Path) -> None:
    path = Path(pack(tmp_path / "t.tar", {"aXb.png": 1, "aYb.png": 2}))
    data = path.read_bytes()
    for letter, byte in ((b"X", b"\xe4"), (b"Y", b"\xf6")):
        place = data.index(b"a" + letter + b"b.png")
        header = bytearray(data[place : place + 512])
        header[1:2] = byte
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data = data[:place] + bytes(header) + data[place + 512 :]
    path.write_bytes(data)
    source = open_source(str(path))
    assert [n for n, _, _ in contents(source)] == [1, 2]
    assert len({source[i].key for i in range(2)}) == 2


def test_what_is_no_tar_is_reported(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", {"0.png": 1})
    cases = {
        "gzip": (gzip.compress((tmp_path / "a.tar").read_bytes()), "by gzip: unpack it first"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        "html": (b"<!DOCTYPE html><html>404</html>", "HTML page"),
    }
    for name, (data, said) in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(UserError, match=said):
            open_source(str(tmp_path / f"{name}.tar"))
    (tmp_path / "a.tar").rename(tmp_path / "shard-0.dat")
    assert len(open_source(str(tmp_path / "shard-0.dat"))) == 1
