"""Tables as people have them: delimiters, encodings, headers, published layouts; read by content, not by ending."""

from __future__ import annotations

import gc
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_data import contents, encoded, make_image

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources import open_source
from openblip.data.sources.questions import answers_of, open_questions

ROWS = [{"image": f"images/{n}.png", "caption": f"image {n}"} for n in range(4)]
EXPECTED = [(n, (f"image {n}",)) for n in range(4)]


def found(spec: Any) -> list[tuple[int, tuple[str, ...]]]:
    return [(n, texts) for n, texts, _ in contents(open_source(spec))]


# ---- JSON ----


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_a_json_list_whatever_its_ending(image_folder: Path, tmp_path: Path, name: str, indent: Any) -> None:
    (tmp_path / name).write_text("\n " + json.dumps(ROWS, indent=indent) + "\n")
    assert found(str(tmp_path / name)) == EXPECTED


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("layout", ["lines", "indented", "blank lines", "list of lines"])
def test_json_lines_whatever_their_ending(image_folder: Path, tmp_path: Path, name: str, layout: str) -> None:
    text = {
        "lines": "\n".join(map(json.dumps, ROWS)),
        "blank lines": "\n\n" + "\n\n".join(map(json.dumps, ROWS)) + "\n\n",
        "indented": "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "list of lines": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    }[layout]
    (tmp_path / name).write_text(text)
    assert found(str(tmp_path / name)) == EXPECTED


def test_one_json_line_and_a_layout_in_one_line(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0]))
    (tmp_path / "one.jsonl").write_text(json.dumps(ROWS[0]))
    assert found(str(tmp_path / "one.json")) == found(str(tmp_path / "one.jsonl")) == EXPECTED[:1]
    coco = {"images": [{"id": 1, "file_name": "images/3.png"}], "annotations": [{"image_id": 1, "caption": "c"}]}
    for name in ("coco.json", "coco.jsonl"):
        for indent in (None, 2):
            (tmp_path / name).write_text(json.dumps(coco, indent=indent))
            assert found(str(tmp_path / name)) == [(3, ("c",))]


def test_a_broken_first_line_costs_that_line(image_folder: Path, tmp_path: Path) -> None:
    lines = ['{"image": "images/9.png", "capt', *map(json.dumps, ROWS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert found(str(tmp_path / "a.jsonl")) == EXPECTED
    (tmp_path / "a.jsonl").write_bytes(b'{"image": "\xff.png"}\n' + "\n".join(lines[1:]).encode())
    assert found(str(tmp_path / "a.jsonl")) == EXPECTED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(ROWS) + json.dumps(ROWS), "something follows the end of its list"),
        ('{"a": 1} x', "something follows its end"),
        ("[" * 100_000, "nested too deep|not JSON"),
        ('[{"image": ' + "9" * 5000 + "}]", "not JSON"),
    ],
)
def test_json_that_goes_wrong_is_reported(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    gc.collect()  # what other tests left would otherwise be finalized at the recursion limit
    with pytest.raises(UserError, match=says):
        open_source(str(tmp_path / "a.json"))


def test_llava_conversations(image_folder: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": "0",
            "image": "images/2.png",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the picture."},
                {"from": "gpt", "value": "a green square"},
                {"from": "human", "value": "Is it red?"},
                {"from": "gpt", "value": "no"},
            ],
        },
        {"id": "1", "conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(rows))
    assert found(str(path)) == [(2, ("a green square",))]
    assert [bad.cause for bad in open_source(str(path)).bad_rows] == ["bad-row"]
    source = open_questions(str(path))
    assert source[0].texts == ("Describe the picture.", "Is it red?")
    assert answers_of(source[0].meta)["Is it red?"].texts == ("no",)
    chat = {"images": ["images/1.png"], "messages": [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a square"}]},
    ]}  # fmt: skip
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat))
    assert found(str(tmp_path / "chat.jsonl")) == [(1, ("a square",))]


def test_coco_image_info(image_folder: Path, tmp_path: Path) -> None:
    content = {"info": {}, "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)], "categories": []}
    path = tmp_path / "image_info_test2014.json"
    for further in ({}, {"annotations": []}):
        path.write_text(json.dumps(content | further))
        with pytest.raises(UserError, match=r"image_info_test2014\.json lists images without captions"):
            open_source(str(path))
        unread = SourceConfig(path=str(path), need_texts=False, image_root=str(image_folder))
        assert contents(open_source(unread)) == [(n, (), str(n)) for n in range(3)]


# ---- the two files of VQA ----


def vqa(folder: Path, subset: str = "val2014") -> tuple[Path, Path]:
    questions = [
        {"image_id": n, "question_id": 10 * n + k, "question": text}
        for n in (1, 2)
        for k, text in enumerate(("what number?", "is it red?"))
    ]
    annotations = [
        {
            "question_id": row["question_id"],
            "image_id": row["image_id"],
            "multiple_choice_answer": "x",
            "answers": [{"answer": f"{row['question_id']}", "answer_id": k + 1} for k in range(10)],
        }
        for row in questions
    ]
    common = {"data_type": "mscoco", "data_subtype": subset}
    first = folder / f"v2_OpenEnded_mscoco_{subset}_questions.json"
    first.write_text(json.dumps({**common, "task_type": "Open-Ended", "questions": questions}))
    second = folder / f"v2_mscoco_{subset}_annotations.json"
    second.write_text(json.dumps({**common, "annotations": annotations[::-1]}))
    return first, second


@pytest.mark.parametrize("inner", ["", "val2014"])
def test_the_official_vqa_files(tmp_path: Path, inner: str) -> None:
    images = tmp_path / "coco" / inner
    images.mkdir(parents=True)
    for n in (1, 2):
        (images / f"COCO_val2014_{n:012d}.jpg").write_bytes(encoded(make_image(n)))
    pair = vqa(tmp_path)
    vqa(tmp_path, "train2014")
    for path in pair:
        source = open_questions(SourceConfig(path=str(path), image_root=str(tmp_path / "coco")))
        assert [(n, texts, i) for n, texts, i in contents(source)] == [
            (n, ("what number?", "is it red?"), str(n)) for n in (1, 2)
        ]
        assert answers_of(source[1].meta)["is it red?"].merged == pytest.approx({"21": 1.0})
    pair[1].unlink()
    with pytest.raises(
        UserError, match=r"val2014_questions\.json holds questions without answers.*_annotations\.json"
    ):
        open_questions(str(pair[0]))


# ---- delimiters, headers, encodings ----


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("pad", ["", " "])
def test_the_delimiter_is_found_in_the_header(
    image_folder: Path, tmp_path: Path, ending: str, delimiter: str, pad: str
) -> None:
    lines = [["image", "caption"], *([row["image"], row["caption"]] for row in ROWS)]
    path = tmp_path / f"a.{ending}"
    path.write_text("".join(f"{delimiter}{pad}".join(line) + "\n" for line in lines))
    assert found(str(path)) == EXPECTED


def test_delimiters_in_texts_do_not_mislead(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image;caption\nimages/1.png;"a, b, c; d"\nimages/2.png;a, "b"\n')
    assert found(str(tmp_path / "a.csv")) == [(1, ("a, b, c; d",)), (2, ('a, "b"',))]
    (tmp_path / "b.csv").write_text('image, caption\nimages/1.png, "a, b"\n')
    assert found(str(tmp_path / "b.csv")) == [(1, ("a, b",))]
    (tmp_path / "c.csv").write_text("my image;my words, all\nimages/1.png;x\n")
    config = SourceConfig(path=str(tmp_path / "c.csv"), image_column="my image", text_column="my words, all")
    assert found(config) == [(1, ("x",))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json"])
def test_encodings(image_folder: Path, tmp_path: Path, kind: str, encoding: str) -> None:
    text = "ein Käfer\u2028犬 🐕"
    row = {"image": "images/1.png", "caption": text}
    content = {
        "csv": f'image,caption\r\nimages/1.png,"{text}\nline"\r\n',
        "tsv": f"image\tcaption\nimages/1.png\t{text}\n",
        "jsonl": json.dumps(row, ensure_ascii=False) + "\n",
        "json": json.dumps([row], ensure_ascii=False),
    }[kind]
    (tmp_path / f"a.{kind}").write_bytes(content.encode(encoding))
    assert found(str(tmp_path / f"a.{kind}")) == [(1, (f"{text}\nline" if kind == "csv" else text,))]


def test_cut_utf16_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("image,caption\na.png,x\n".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"a\.csv is not UTF-16 text"):
        open_source(str(tmp_path / "a.csv"))


def test_open_clip_and_blanks_around_names(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("filepath\ttitle\nimages/1.png\tone\n")
    assert found(str(tmp_path / "a.csv")) == [(1, ("one",))]
    (tmp_path / "b.csv").write_text(" Image ,CAPTION , Image_ID\nimages/1.png,one,7\n")
    assert contents(open_source(str(tmp_path / "b.csv"))) == [(1, ("one",), "7")]
    pq.write_table(pa.table({" image": ["images/1.png"], "caption ": ["one"]}), tmp_path / "c.parquet")
    assert found(str(tmp_path / "c.parquet")) == [(1, ("one",))]
    assert found(SourceConfig(path=str(tmp_path / "c.parquet"), text_column="caption")) == [(1, ("one",))]


def test_flickr30k_and_flickr8k(image_folder: Path, tmp_path: Path) -> None:
    root = str(image_folder)
    (tmp_path / "results.csv").write_text(
        "image_name| comment_number| comment\n"
        '1.png| 0| Two "young" guys , with hair .\n1.png| 1| Two men .\n2.png| 0   A dog\n3.png| 0| "A sign"\n'
    )
    source = open_source(SourceConfig(path=str(tmp_path / "results.csv"), image_root=root))
    assert [(n, texts) for n, texts, _ in contents(source)] == [
        (1, ('Two "young" guys , with hair .', "Two men .")),
        (3, ("A sign",)),
    ]
    assert [bad.key for bad in source.bad_rows] == ["results.csv line 4"]
    folder = tmp_path / "flickr8k"
    folder.mkdir()
    (folder / "captions.txt").write_text('image,caption\n1.png,"A child , in pink"\n1.png,A girl\n')
    assert found(SourceConfig(path=str(folder / "captions.txt"), image_root=root)) == [
        (1, ("A child , in pink", "A girl"))
    ]
    assert found(SourceConfig(path=str(folder), image_root=root)) == [(1, ("A child , in pink", "A girl"))]
    (tmp_path / "Flickr8k.token.txt").write_text("1.png#0\tA child , in pink\n1.png#1\tA girl\n2.png#0\tA dog\n")
    source = open_source(SourceConfig(path=str(tmp_path / "Flickr8k.token.txt"), image_root=root))
    assert [(n, texts) for n, texts, _ in contents(source)] == [
        (1, ("A child , in pink", "A girl")),
        (2, ("A dog",)),
    ]


def test_lists_without_a_header(image_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text("a very typical bus station\thttp://lh6.example.com/a.jpg\nsierra looked\thttp://x.org/b\n")
    with pytest.raises(UserError, match=r"Train_GCC-training\.tsv holds web addresses and no images.*img2dataset"):
        open_source(str(path))
    (tmp_path / "a.csv").write_text("images/1.png,one\nimages/2.png,two\n")
    assert found(str(tmp_path / "a.csv")) == [(1, ("one",)), (2, ("two",))]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
def test_files_that_are_something_else_are_reported(tmp_path: Path, name: str) -> None:
    for data, said in (
        (gzip.compress(b"image,caption\n"), "by gzip: unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        (b"\n<!doctype html><html>", "HTML page"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name} is not a .* file: it is .*{said}"):
            open_source(str(tmp_path / name))


def test_a_parquet_file_under_another_name(image_folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data.csv")
    assert found(str(tmp_path / "data.csv")) == EXPECTED


# ---- captions and images in parquet's types ----

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STRUCT = pa.struct([("raw", pa.string()), ("sentid", pa.int64())])


@pytest.mark.parametrize(
    ("kind", "cells", "texts"),
    [
        pytest.param(
            *(pa.list_(pa.string(), 2), [["a", "b"], ["c", None], None], [("a", "b"), ("c",), ()]),
            marks=pytest.mark.skipif(
                pa.__version__ < "26", reason="pyarrow before 26 cannot read a null among them"
            ),
        ),
        (STRUCT, [{"raw": "a", "sentid": 1}, {"raw": None, "sentid": 2}, None], [("a",), (), ()]),
        (pa.list_(STRUCT), [[{"raw": "a"}, {"raw": "b"}], [], None], [("a", "b"), (), ()]),
        (pa.list_(STRUCT, 1), [[{"raw": "a"}], [{"raw": "b"}], [{"raw": "c"}]], [("a",), ("b",), ("c",)]),
        (pa.large_list(pa.large_string()), [["a"], ["b", "c"], None], [("a",), ("b", "c"), ()]),
        (pa.dictionary(pa.int32(), pa.string()), ["a", "a", None], [("a",), ("a",), ()]),
        (pa.binary(), [b"a", "ä".encode(), None], [("a",), ("ä",), ()]),
        (pa.float64(), [float("nan"), None, 3.5], [(), (), ("3.5",)]),
        (pa.null(), [None, None, None], [(), (), ()]),
    ],
    ids=str,
)
def test_captions_of_every_type(image_folder: Path, tmp_path: Path, kind: Any, cells: Any, texts: Any) -> None:
    table = pa.table({"image": [f"images/{n}.png" for n in range(3)], "caption": pa.array(cells, kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [texts for _, texts, _ in contents(source)] == texts
    assert source.text_counts().tolist() == [len(own) for own in texts]


def test_binary_captions_that_are_no_text_are_reported(image_folder: Path, tmp_path: Path) -> None:
    table = pa.table({"image": ["images/0.png", "images/1.png"], "caption": pa.array([b"\xff\xfe\xff", b"a"])})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert [(bad.cause, bad.key) for bad in source.bad_rows] == [("bad-text", "a.parquet:0")]
    assert found(str(tmp_path / "a.parquet")) == [(0, ()), (1, ("a",))]


def both(data: bytes | None, path: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        (IMAGE, [both(None, f"images/{n}.png") for n in range(3)]),
        (
            IMAGE,
            [both(encoded(make_image(0)), None), both(None, "images/1.png"), both(encoded(make_image(2)), "x.png")],
        ),
        (pa.list_(IMAGE), [[both(encoded(make_image(n)), None)] for n in range(3)]),
        (pa.list_(pa.binary()), [[encoded(make_image(n))] for n in range(3)]),
        (pa.dictionary(pa.int32(), pa.binary()), [encoded(make_image(n)) for n in range(3)]),
        (pa.list_(pa.string()), [[f"images/{n}.png"] for n in range(3)]),
        (pa.list_(pa.string(), 1), [[f"images/{n}.png"] for n in range(3)]),
        (pa.dictionary(pa.int32(), pa.string()), [f"images/{n}.png" for n in range(3)]),
    ],
)  # fmt: skip
def test_images_of_every_type(image_folder: Path, tmp_path: Path, kind: Any, cells: Any) -> None:
    table = pa.table({"image": pa.array(cells, kind), "caption": ["0", "1", "2"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert found(str(tmp_path / "a.parquet")) == [(n, (str(n),)) for n in range(3)]


def test_paths_in_cells_of_images_group_and_stay_inside(image_folder: Path, tmp_path: Path) -> None:
    kind = IMAGE
    images = pa.array([both(None, "images/1.png"), both(None, "images/1.png"), both(None, "../x.png")], kind)
    pq.write_table(pa.table({"image": images, "caption": ["a", "b", "c"]}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    assert (len(source), source[0].texts, source[0].image_id) == (2, ("a", "b"), "images/1.png")
    with pytest.raises(BrokenSample, match="leads out of"):
        source[1]


def test_rows_of_several_images_are_reported(image_folder: Path, tmp_path: Path) -> None:
    rows = [
        {"image": ["images/1.png", "images/2.png"], "caption": "two"},
        {"image": ["images/3.png"], "caption": "one"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        source = open_source(str(tmp_path / name))
        assert [(n, texts) for n, texts, _ in contents(source)] == [(3, ("one",))]
        assert ["holds 2 images" in bad.detail for bad in source.bad_rows] == [True]


# ---- roots and addresses ----


def test_several_roots(image_folder: Path, tmp_path: Path) -> None:
    for name, n in (("coco", 1), ("vg", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(encoded(make_image(n)))
        (tmp_path / name / "both.png").write_bytes(encoded(make_image(n)))
    rows = [{"image": name, "caption": name} for name in ("vg.png", "coco.png", "both.png", "none.png", "../x.png")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = parse_spec(f"{path}?image_root={tmp_path / 'coco'}+{tmp_path / 'vg'}")
    source = open_source(config)
    assert [source[i].image for i in (0, 1, 3)] == [
        tmp_path / "vg" / "vg.png",
        tmp_path / "coco" / "coco.png",
        tmp_path / "coco" / "none.png",
    ]
    with pytest.raises(BrokenSample, match="under several roots"):
        source[2]
    with pytest.raises(BrokenSample, match="leads out of"):
        source[4]
    (tmp_path / "a+b").mkdir()
    assert open_source(f"{path}?image_root={tmp_path / 'a+b'}")[0].image == tmp_path / "a+b" / "vg.png"
    with pytest.raises(UserError, match=r'image_root: there is no .*coko.*did you mean "coco"'):
        open_source(f"{path}?image_root={tmp_path / 'coko'}+{tmp_path / 'vg'}")


def test_file_addresses(image_folder: Path, tmp_path: Path) -> None:
    inside = tmp_path / "images" / "a b.png"
    inside.write_bytes(encoded(make_image(5)))
    address = inside.as_uri()
    assert "%20" in address
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"image": address, "caption": "x"}))
    assert found(path.as_uri()) == [(5, ("x",))]
    assert found(f"{path.as_uri()}?image_root={image_folder.as_uri()}") == [(5, ("x",))]
    path.write_text(json.dumps({"image": "file:///elsewhere/a.png", "caption": "x"}))
    with pytest.raises(BrokenSample, match=r"leads out of.*absolute_paths"):
        open_source(str(path))[0]
