"""VisDial's files as a source: rounds, candidates, dense annotations, and what is wrong with a dialog."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import miniature
import pytest

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.sources.dialogs import Dialog, dialog_of, open_dialogs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    miniature.coco(root)
    miniature.visdial(root)
    return root


def dialogs(name: str, root: Path) -> dict[int, Dialog]:
    source = open_dialogs(f"visdial:{name}?root={root}")
    assert not source.bad_rows
    return {int(source[i].key): dialog_of(source[i].meta) for i in range(len(source))}


def test_questions_and_answers_are_indices_into_pools(root: Path) -> None:
    dialog = dialogs("val", root)[284024]
    assert (dialog.image_id, dialog.caption, len(dialog.rounds)) == (284024, "the caption of 284024", 10)
    second = dialog.rounds[1]
    assert (second.question, second.answer, second.right) == ("is it question 1", "answer 32", 25)
    assert len(second.options) == 100
    assert second.options[25] == second.answer


def test_dense_annotations_count_rounds_from_one_and_have_two_names(root: Path) -> None:
    val, train = dialogs("val", root), dialogs("train", root)
    assert [bool(one.relevance) for one in val[284024].rounds] == [True] + [False] * 9
    assert [bool(one.relevance) for one in val[185565].rounds] == [False] * 9 + [True]
    assert val[284024].rounds[0].relevance[:4] == (1.0, 0.0, 0.5, 0.0)
    assert train[133].rounds[3].relevance[:2] == (0.2, 0.0)  # "relevance" in the file of train


def test_dialogs_of_test_are_ragged_and_their_last_round_has_no_answer(root: Path) -> None:
    long, short = dialogs("test", root).values()
    assert (len(long.rounds), len(short.rounds)) == (10, 3)
    assert [len(one.options) for one in short.rounds] == [0, 0, 100]
    assert [bool(one.answer) for one in short.rounds] == [True, True, False]
    assert [one.right for one in short.rounds] == [None] * 3


def test_images_are_those_of_coco_in_two_folders_or_of_the_split(root: Path) -> None:
    names = {}
    for split in ("train", "val"):
        source = open_dialogs(f"visdial:{split}?root={root}")
        names |= {source[i].key: Path(str(source[i].image)) for i in range(len(source))}
    assert all(path.is_file() for path in names.values())
    assert names["9"].parts[-2:] == ("train2014", "COCO_train2014_000000000009.jpg")
    assert names["133"].parts[-2:] == ("val2014", "COCO_val2014_000000000133.jpg")
    assert names["185565"].parts[-2:] == ("VisualDialog_val2018", "VisualDialog_val2018_000000185565.jpg")


def test_a_file_of_ones_own_names_its_images(tmp_path: Path) -> None:
    said = [
        {"question": 0, "answer": 1, "answer_options": []},
        {"question": 1, "answer_options": [1, 0], "gt_index": 1},
    ]
    rows = [{"image_id": "a", "image": "photos/a.png", "caption": "a dog", "dialog": said}]
    data = {"dialogs": rows, "questions": ["is it small", "is it brown"], "answers": ["no", "yes"]}
    source = open_dialogs(str(miniature.write(tmp_path / "own.json", {"data": data})))
    assert source[0].image == tmp_path / "photos" / "a.png"
    assert source[0].texts == ("a dog", "is it small", "yes", "is it brown", "no")
    first, second = dialog_of(source[0].meta).rounds
    assert (first.options, second.options) == ((), ("yes", "no"))
    assert second.answer == "no", "it is told by its place among the candidates"
    named = open_dialogs(str(tmp_path / "own.json") + "?image_name=x/{image_id}.jpg")
    assert named[0].image == tmp_path / "photos" / "a.png", "what a dialog names goes first"


def _rounds(content: dict[str, Any]) -> list[dict[str, Any]]:
    return content["data"]["dialogs"][0]["dialog"]


def _ask_nothing(content: dict[str, Any]) -> None:
    content["data"]["questions"].append(" ")
    _rounds(content)[2].update(question=12)


SPOILED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no rounds": (lambda c: c["data"]["dialogs"][0].update(dialog=[]), "it has no rounds"),
    "no item": (lambda c: c["data"]["dialogs"].__setitem__(0, 3), "it has no image_id"),
    "no id": (lambda c: c["data"]["dialogs"][0].update(image_id=None), "it has no image_id"),
    "twice": (lambda c: c["data"]["dialogs"].append(c["data"]["dialogs"][1]), "image 284024 has a dialog already"),
    "question": (lambda c: _rounds(c)[2].update(question=99), "the question of round 3 is 99, not an index of 12"),
    "blank": (_ask_nothing, "the question of round 3 is empty"),
    "answer": (lambda c: _rounds(c)[2].update(answer="yes"), "the answer of round 3 is 'yes', not an index of 120"),
    "options": (lambda c: _rounds(c)[0].update(answer_options=[-1] * 100), "answer_options of round 1 are not"),
    "floats": (lambda c: _rounds(c)[0].update(answer_options=[0.5] * 100), "answer_options of round 1 are not"),
    "ragged": (
        lambda c: _rounds(c)[0].update(answer_options=[[1], [2, 3]]),
        "answer_options of round 1 are not",
    ),
    "huge": (lambda c: _rounds(c)[0].update(answer_options=[2**40] * 100), "answer_options of round 1 are not"),
    "right": (lambda c: _rounds(c)[0].update(gt_index=100), "the gt_index of round 1 is 100, not an index of 100"),
    "another": (
        lambda c: _rounds(c)[0].update(gt_index=3),
        "gt_index of round 1 is of another answer",
    ),
    "fewer": (
        lambda c: _rounds(c)[9].update(answer_options=list(range(30)), gt_index=1, answer=1),
        "100 dense anno",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_dialog_that_is_wrong_is_left_out_and_told(case: str, root: Path, tmp_path: Path) -> None:
    spoil, message = SPOILED[case]
    shutil.copytree(root / "visdial", tmp_path / "visdial")
    file = tmp_path / "visdial" / "visdial_1.0_val.json"
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    source = open_dialogs(f"visdial:val?root={tmp_path}")
    bad, *rest = source.bad_rows
    assert len(rest) == case.startswith("no i"), "dense annotations of an image that nothing is known of are told"
    assert message in bad.detail
    assert len(source) == (2 if case == "twice" else 1)


def test_dense_annotations_of_no_round_are_told(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "visdial", tmp_path / "visdial")
    file = tmp_path / "visdial" / "visdial_1.0_val_dense_annotations.json"
    rows = json.loads(file.read_text())
    rows[0]["round_id"] = 11
    file.write_text(json.dumps(rows))
    (bad,) = open_dialogs(f"visdial:val?root={tmp_path}").bad_rows
    assert (bad.key, bad.detail) == (
        "visdial_1.0_val.json image 284024",
        "the dense annotations are of round 11, which has no options",
    )
    rows = [{**rows[0], "round_id": 1}, {**rows[0], "image_id": 5, "round_id": 2}, {**rows[0], "round_id": 1}]
    rows[2]["gt_relevance"] = [0.0] * 100
    file.write_text(json.dumps(rows))
    source = open_dialogs(f"visdial:val?root={tmp_path}")
    assert [bad.detail for bad in source.bad_rows] == [
        "the dense annotations are of round 2 of image 5, which has no dialog",
        "round 1 of image 284024 has dense annotations already, which are used",
    ]
    assert sum(dialog_of(source[1].meta).rounds[0].relevance) == 1.5
    for spoiled in ({**rows[0], "round_id": 0}, {**rows[0], "gt_relevance": [2.0]}, {"image_id": 1, "round_id": 1}):
        file.write_text(json.dumps([spoiled]))
        with pytest.raises(UserError, match="row 0 is no dense annotation of image_id, round_id"):
            open_dialogs(f"visdial:val?root={tmp_path}")


def test_files_without_dialogs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"own\.json"):
        open_dialogs(str(tmp_path / "own.json"))
    file = miniature.write(tmp_path / "own.json", {"data": {"questions": [], "answers": []}})
    with pytest.raises(UserError, match=r'as VisDial v1\.0 it is an object whose "data" has "questions"'):
        open_dialogs(str(file))
    miniature.write(file, {"data": {"questions": [], "answers": [], "dialogs": [{"dialog": []}]}})
    with pytest.raises(UserError, match="holds no dialogs; 1 cannot be read, first bad-row"):
        open_dialogs(str(file))
    miniature.write(file, [1])
    with pytest.raises(UserError, match="it is no JSON object"):
        open_dialogs(str(file))


def test_settings_of_other_sources_are_refused_and_data_have_a_fingerprint(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='does not read the setting "text_column"'):
        open_dialogs(f"visdial:val?root={root}&text_column=a")
    shutil.copytree(root / "visdial", tmp_path / "visdial")
    before = open_dialogs(f"visdial:val?root={root}").fingerprint()
    assert open_dialogs(f"visdial:val?root={tmp_path}").fingerprint() == before
    file = tmp_path / "visdial" / "visdial_1.0_val.json"
    file.write_text(file.read_text().replace("the caption of 284024", "another caption"))
    assert open_dialogs(f"visdial:val?root={tmp_path}").fingerprint() != before


def test_an_image_that_is_missing_is_named_by_its_usual_path(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "visdial", tmp_path / "visdial")
    (gone,) = tmp_path.glob("**/VisualDialog_val2018_000000284024.jpg")
    gone.unlink()
    with pytest.raises(UserError, match=r"1 of 2 images looked at are missing.*visualdialog.org"):
        open_dialogs(f"visdial:val?root={tmp_path}")
    source = open_dialogs(f"{tmp_path}/visdial/visdial_1.0_val.json")
    assert Path(str(source[1].image)) == gone
    with pytest.raises(BrokenSample, match="leads out of"):
        _ = open_dialogs(f"{tmp_path}/visdial/visdial_1.0_val.json?image_name=../../{{image_id}}.jpg")[0]
