"""A setting that a source does not read is refused; splits, configurations and image lists of Hugging Face data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_data import contents, encoded, make_image

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig
from openblip.data.sources import open_source
from openblip.data.sources.questions import open_questions
from openblip.data.sources.statements import open_statements

GIVEN: dict[str, Any] = {
    "root": ".",
    "image_name": "images/{caption}.png",
    "need_answers": False,
    "rule": "exact",
    "answer_weight": 0.2,
    "split": "train",
    "image_root": ".",
    "absolute_paths": True,
    "image_column": "image",
    "text_column": "caption",
    "id_column": "caption",
    "meta_columns": ("caption",),
    "questions": True,
    "answer_column": "answer",
    "max_questions": 2,
    "statements": True,
    "num_images": 2,
    "frames": 2,
    "classes": "folder",
}
COMMON = {"path", "name", "weight", "epoch_share", "pairs", "need_texts"}


def test_every_setting_is_known_here() -> None:
    assert {field.name for field in dataclasses.fields(SourceConfig)} == GIVEN.keys() | COMMON


@pytest.fixture
def sources(image_folder: Path, tmp_path: Path, write_tar: Any) -> dict[str, str]:
    row = {"image": "images/1.png", "caption": "one", "split": "train"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (image_folder / "1.txt").write_text("one")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    return {
        "folder": str(image_folder),
        "tars": str(write_tar("a.tar", 0, 2)),
        "table": str(tmp_path / "a.jsonl"),
        "parquet": str(tmp_path / "a.parquet"),
        "world": "world:train?n=2&size=32",
    }


OF_TABLES = {"split", "image_root", "absolute_paths", "image_column", "text_column", "id_column", "meta_columns"}
OF_TABLES |= {"frames"}
READ = {
    "folder": {"text_column", "frames"},
    "tars": {"image_column", "text_column", "id_column", "meta_columns"},
    "table": OF_TABLES | {"image_name"},
    "parquet": OF_TABLES,
    "world": set[str](),
}


@pytest.mark.parametrize("kind", list(READ))
@pytest.mark.parametrize("setting", list(GIVEN))
def test_settings_without_effect_are_refused(sources: dict[str, str], kind: str, setting: str) -> None:
    value = GIVEN[setting]
    if kind == "tars":
        value = {"image_column": "png", "id_column": "url"}.get(setting, value)
    if kind == "folder" and setting == "text_column":
        value = "txt"
    config = SourceConfig(path=sources[kind], **{setting: value})
    if setting in READ[kind]:
        assert len(open_source(config))
        return
    with pytest.raises(UserError) as caught:
        open_source(config)
    message = str(caught.value)
    assert sources[kind] in message or kind == "world"
    # A folder reads "classes", and this one has none; the others say in words what they hold none of.
    said = "each class needs one of its own" if (kind, setting) == ("folder", "classes") else setting
    assert said in message or setting in ("questions", "statements", "num_images")
    assert "\n" not in message


@pytest.mark.parametrize("kind", list(READ))
def test_common_settings_are_read_by_all(sources: dict[str, str], kind: str) -> None:
    config = SourceConfig(path=sources[kind], name="n", weight=2.0, pairs=True, need_texts=False)
    assert open_source(config).name == "n"


def test_the_nearest_setting_is_named(sources: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r'does not read the setting "answer_column".*did you mean "\w+_column"'):
        open_source(f"{sources['tars']}?answer_column=x")
    with pytest.raises(UserError, match=r'the setting "max_questions" only for questions'):
        open_source(f"{sources['table']}?max_questions=2")


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_captions_are_no_questions(sources: dict[str, str], kind: str) -> None:
    with pytest.raises(UserError, match=r"holds no questions with answers"):
        open_questions(sources[kind])
    with pytest.raises(UserError, match=r"holds no statements with labels"):
        open_statements(sources[kind])
    with pytest.raises(UserError, match=r"has one image in each sample, not 2; give a captions file"):
        open_source(f"{sources[kind]}?num_images=2")


# ---- Hugging Face ----


def rows(numbers: list[int], **columns: Any) -> dict[str, Any]:
    return {
        "image": [{"bytes": encoded(make_image(n)), "path": None} for n in numbers],
        "caption": [f"c{n}" for n in numbers],
        **columns,
    }


def dataset(content: dict[str, Any]) -> Any:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(content)
    return data.cast_column("image", datasets.Image())


def numbers(spec: Any) -> list[int]:
    return [n for n, _, _ in contents(open_source(spec))]


def test_a_column_split_chooses_rows(tmp_path: Path) -> None:
    """As in Flickr30k: everything in the split "test", the real splits in a column."""
    datasets = pytest.importorskip("datasets")
    data = dataset(rows([0, 1, 2, 3], split=["train", "test", "val", "train"]))
    place = str(tmp_path / "d")
    datasets.DatasetDict({"test": data}).save_to_disk(place)
    assert numbers(f"hf:{place}") == [0, 1, 2, 3]
    assert numbers(f"hf:{place}:test") == numbers(f"hf:{place}?split=test") == numbers(f"{place}?split=test") == [1]
    assert numbers(f"hf:{place}:train") == numbers(f"hf:{place}:test?split=train") == [0, 3]
    with pytest.raises(UserError, match=r'has no split "vall".*choose one as hf:'):
        open_source(f"hf:{place}:vall")
    with pytest.raises(UserError, match=r'no rows of split "vall".*did you mean "val"'):
        open_source(f"hf:{place}:test?split=vall")
    data.save_to_disk(str(tmp_path / "one"))
    assert numbers(f"hf:{tmp_path / 'one'}:val") == [2]


def test_a_column_split_that_says_other_things(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = dataset(rows([0, 1], split=["a", "b"]))
    datasets.DatasetDict({"train": data, "val": data.select([1])}).save_to_disk(str(tmp_path / "d"))
    assert numbers(f"hf:{tmp_path / 'd'}:train") == [0, 1]
    assert numbers(f"hf:{tmp_path / 'd'}:train?split=b") == [1]
    plain = dataset(rows([0, 1]))
    plain.save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(UserError, match=r'has no splits, so "val" cannot be chosen'):
        open_source(f"hf:{tmp_path / 'plain'}:val")


def test_configurations_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    head = ["---", "configs:"]
    for number, name in enumerate(("english", "german")):
        (folder / f"{number}.png").write_bytes(encoded(make_image(number)))
        row = {"image": f"{number}.png", "caption": name}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        head += [f"- config_name: {name}", f"  data_files: {name}.jsonl"]
    (folder / "README.md").write_text("\n".join([*head, "---", ""]))
    with pytest.raises(UserError, match=r"has several configurations: english, german; choose one as hf:"):
        open_source(f"hf:{folder}")
    assert numbers(f"hf:{folder}:german:train") == [1]
    assert numbers(f"hf:{folder}:english") == [0]
    assert numbers(f"hf:{folder}:english?split=train") == [0]
    with pytest.raises(UserError, match=r'no configuration "germn".*did you mean "german"'):
        open_source(f"hf:{folder}:germn:train")
    with pytest.raises(UserError, match=r'has no split "tran".*choose one as hf:.*:german:SPLIT'):
        open_source(f"hf:{folder}:german:tran")


def test_lists_of_images_and_images_by_path(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"images": datasets.List(datasets.Image()), "text": datasets.Value("string")})
    cells = [[{"bytes": encoded(make_image(n)), "path": None} for n in own] for own in ([3], [], [1, 2])]
    data = datasets.Dataset.from_dict({"images": cells, "text": ["a", "b", "c"]}, features=features)
    data.save_to_disk(str(tmp_path / "lists"))
    source = open_source(str(tmp_path / "lists"))
    assert source[0].texts == ("a",)
    for index, said in ((1, "no image"), (2, "holds 2 images")):
        with pytest.raises(BrokenSample, match=said):
            source[index]
    cells = [{"bytes": None, "path": f"images/{n}.png"} for n in (4, 4, 5)]
    paths = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": paths, "caption": ["a", "b", "c"]})
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "paths").mkdir()
    pq.write_table(table.cast(features.arrow_schema), tmp_path / "paths" / "train.parquet")
    expected = [(4, ("a",), "images/4.png"), (4, ("b",), "images/4.png"), (5, ("c",), "images/5.png")]
    assert contents(open_source(f"hf:{tmp_path / 'paths'}?image_root={tmp_path}")) == expected
    plain = datasets.Dataset.from_dict(
        {"image": [f"images/{n}.png" for n in (4, 4, 5)], "caption": ["a", "b", "c"]}
    )
    plain.save_to_disk(str(tmp_path / "plain"))
    assert contents(open_source(f"hf:{tmp_path / 'plain'}?image_root={tmp_path}")) == expected
