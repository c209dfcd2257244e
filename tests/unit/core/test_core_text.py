"""Text is read in one way: byte-order marks, ends of lines, what is no text, names of files that are not UTF-8."""

from __future__ import annotations

import codecs
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from openblip.core.errors import UserError, first_line
from openblip.core.files import append_jsonl, read_jsonl, write_json, write_text
from openblip.core.kinds import instead_of_model, instead_of_text, looks_like
from openblip.core.text import decode, json_bytes, lines_of, read_json, read_lines, read_text, rounded

NO_ENDS = ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85"]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    lines = ["one", *(f"a{end}b" for end in NO_ENDS), "with\rin", "", "last"]
    for end in ("\n", "\r\n"):
        for last in ("", end):
            file.write_bytes((end.join(lines) + last).encode())
            assert read_lines(file) == lines
    assert lines_of("") == []
    assert lines_of("\n") == [""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_is_dropped(encoding: str, tmp_path: Path) -> None:
    mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    (tmp_path / "a.txt").write_bytes(mark + "grün\nだめ\n".encode(encoding))
    assert read_lines(tmp_path / "a.txt") == ["grün", "だめ"]


@pytest.mark.parametrize(("mark", "place"), [(b"", 4), (codecs.BOM_UTF8, 7)])
def test_what_cannot_be_read_is_named_with_its_byte(mark: bytes, place: int, tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(mark + b"one\n\xe9t\xe9\n")
    with pytest.raises(UserError, match=rf"latin\.txt is not UTF-8 text: byte {place} \(0xe9\).*save it as UTF-8"):
        read_text(file)
    assert read_text(file, paths=True) == "one\n\udce9t\udce9\n"


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.txt is no text: it is a zip archive"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "is a git-lfs pointer: run `git lfs pull`"),
        (HTML, "is an HTML page"),
        (b"\n  <html lang='en'>", "is an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an XML document"),
        (b"", "is empty"),
        (b"\0" * 2000, "begins with zeros alone"),
        (b"\x1f\x8b\x08\0", "is compressed by gzip"),
        (b'{"a": 1,\n "b" 2}', "at line 2, column 6"),
        (b"[" * 200_000, "nested too deep"),
    ],
)
def test_json_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json (is|cannot be read as JSON)") as caught:
        read_json(tmp_path / "config.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + b'{"a": "\xe2\x80\xa8"}')
    assert read_json(tmp_path / "a.json") == {"a": "\u2028"}


def test_kinds_by_their_first_bytes() -> None:
    safetensors = (20).to_bytes(8, "little") + b'{"a":{"dtype":"F32"'
    assert looks_like(safetensors) == "is a safetensors file"
    assert instead_of_model(safetensors) is None
    assert instead_of_model(b"PK\x03\x04rest") is None
    assert instead_of_model(b"\x80\x02\x8a\nl") is None
    assert "JSON" in str(instead_of_model(b'{"message": "Not Found"}'))
    assert instead_of_model(b"Not found") == "is text"
    assert "GGUF" in str(instead_of_model(b"GGUF\x03\0\0\0"))
    assert instead_of_text(b"plain text") is None
    assert instead_of_text(b"<p>ein Satz</p>") is None
    assert instead_of_text(b"a\0b") == "is binary"
    assert looks_like(bytes(257) + b"ustar\0") is None or "tar" in str(looks_like(b"x" * 257 + b"ustar\0"))
    assert looks_like(b"x" * 257 + b"ustar\0") == "is a tar archive"


def test_names_of_files_that_are_not_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    assert json.loads(json_bytes({"image": name, "caption": "été"}))["image"] == name
    assert json_bytes({"caption": "été"}) == '{"caption": "été"}'.encode()
    append_jsonl(tmp_path / "a.jsonl", {"image": name})
    assert read_jsonl(tmp_path / "a.jsonl") == [{"image": name}]
    write_json(tmp_path / "a.json", [name])
    assert read_json(tmp_path / "a.json") == [name]
    write_text(tmp_path / "list.txt", f"{name}\n")
    assert (tmp_path / "list.txt").read_bytes() == b"caf\xe9.jpg\n"
    assert read_lines(tmp_path / "list.txt", paths=True) == [name]
    assert decode(b"\xe9", "x", paths=True).encode("utf-8", "surrogateescape") == b"\xe9"


def test_a_message_of_nothing_has_a_first_line() -> None:
    assert first_line(ValueError("\n one.\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


@dataclass(frozen=True)
class _Scored:
    name: str
    score: float | None
    parts: tuple[float, int]


def test_shown_numbers_have_six_decimal_places() -> None:
    long = 0.39808398485183716
    assert rounded(_Scored("a", long, (long, 3))) == _Scored("a", 0.398084, (0.398084, 3))
    assert rounded({"a": [long, None, True], "b": "1.23456789"}) == {"a": [0.398084, None, True], "b": "1.23456789"}
    assert rounded(_Scored("a", None, (-11.43193531036377, 1))).parts == (-11.431935, 1)
