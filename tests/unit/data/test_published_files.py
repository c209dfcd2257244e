"""Files of published datasets under their own names: those that BLIP and LAVIS derived, and the first ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import miniature
import pytest

from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.data.sources import open_source
from openblip.data.sources.questions import answers_of, asked_of, open_questions
from openblip.data.sources.statements import open_statements, statements_of


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("place", ["vgqa/vg_qa.json", "vg/annotations/vg_qa.json"])
@pytest.mark.parametrize("folder", ["image", "VG_100K_2"])
def test_blips_files_of_visual_genome(root: Path, place: str, folder: str) -> None:
    for part in {"VG_100K": ("VG_100K",), "image": ()}.get(folder, ("VG_100K", folder)):
        miniature.image(root / "vg" / "images" / part / "9.jpg")
    miniature.image(root / "vg" / "images" / folder / "61.jpg")
    row = {"image": "image/61.jpg", "question": "Where?", "answer": "park", "question_id": 7, "dataset": "vg"}
    miniature.write(root / place, [row])
    (root / "vgqa").mkdir(exist_ok=True)
    sample = open_questions("vgqa:train")[0]
    assert answers_of(sample.meta)["Where?"].merged == {"park": 0.2}
    assert Path(str(sample.image)).parts[-2:] == (folder, "61.jpg")
    captions = [{"image": "image/61.jpg", "caption": text} for text in ("a park", "a tree")]
    miniature.write(root / "vg" / "annotations" / "vg_caption.json", captions)
    assert open_source("vg:train")[0].texts == ("a park", "a tree")


@pytest.mark.parametrize("answer", [{"answer": ["net"] * 10}, {}])
def test_lavis_questions_of_val(root: Path, answer: dict[str, list[str]]) -> None:
    miniature.coco(root)
    row = {"image": "val2014/COCO_val2014_000000000042.jpg", "question": "What is this?", "question_id": 7}
    miniature.write(root / "vqav2" / "annotations" / "vqa_val_eval.json", [{**row, **answer}])
    (given,) = asked_of(open_questions("vqav2:val")[0].meta).given
    assert (given.about.id, len(given.texts)) == (7, 10 if answer else 0)


def test_lavis_statements_of_test1_are_not_those_of_dev(root: Path) -> None:
    miniature.nlvr2(root)
    for path in (root / "nlvr2").glob("*.json"):
        path.unlink()
    path = root / "nlvr2" / "annotations" / "test.json"
    for folder in ("test1", "dev"):
        names = [f"{folder}/{folder}-10-0-img{side}.png" for side in (0, 1)]
        miniature.write(path, [{"images": names, "sentence": "A dog.", "label": "True"}])
        if folder == "test1":
            assert statements_of(open_statements("nlvr2:test1")[0].meta)[0].label
    with pytest.raises(UserError, match=r"nlvr2:test1 name .*dev-10-0-img0.png and no image in test1: they are of"):
        open_statements("nlvr2:test1")


def test_statements_of_a_test_split_need_no_labels(root: Path) -> None:
    path = miniature.nlvr2(root) / "test1.json"
    rows = [{"identifier": f"test1-10-{pair}-0", "sentence": "A dog."} for pair in (0, 1)]
    miniature.write(path, rows, lines=True)
    source = open_statements("nlvr2:test1")
    assert [statements_of(source[index].meta)[0].label for index in (0, 1)] == [None, None]
    at = f"{path}?image_root={root}/nlvr2/images"
    with pytest.raises(UserError, match=r"has no label column.*need_answers=false for predictions alone"):
        open_statements(at)
    assert not open_statements(f"{at}&need_answers=false").bad_rows
    miniature.write(path, [{**rows[0], "label": "maybe"}, {**rows[1], "label": "True"}], lines=True)
    (bad,) = open_statements("nlvr2:test1").bad_rows
    assert bad.detail == "'maybe' under \"label\" is neither true nor false"


def test_msvd_questions_name_videos_by_the_mapping(root: Path) -> None:
    home = miniature.msvdqa(root)
    for path in home.glob("qa_*.json"):
        path.unlink()
    rows = [{"answer": "eat", "id": n, "question": "what is it doing", "video_id": n} for n in (2, 9)]
    miniature.write(home / "test_qa.json", rows)
    with pytest.raises(UserError, match=r"qa_test\.json is not there"):
        open_questions("msvdqa:test")
    (home / "youtube_mapping.txt").write_text("-4wsuPCjDBc_0_15 vid1\n-4wsuPCjDBc_2_15 vid2\n")
    source = open_questions("msvdqa:test")
    assert Path(str(source[0].image)).name == "-4wsuPCjDBc_2_15.avi"
    assert (source.frames, len(source)) == (16, 1)
    assert [bad.detail for bad in source.bad_rows] == ["youtube_mapping.txt has no vid9"]


def test_msrvtt_as_it_was_published_first(root: Path) -> None:
    home = miniature.msrvtt(root)
    shutil.rmtree(home / "annotations")
    videos = [{"video_id": f"video{n}", "split": split} for n, split in ((0, "train"), (6513, "validate"))]
    sentences = [{"caption": f"c{k}", "video_id": f"video{n}", "sen_id": k} for k, n in enumerate((0, 6513, 0))]
    miniature.write(home / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})
    lines = ["key,vid_key,video_id,sentence", "ret0,msr9770,video9770,a person", 'ret1,msr7020,video7020,"a, b"']
    (home / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(lines))
    train, val, test = (open_source(f"msrvtt:{split}") for split in ("train", "val", "test"))
    assert [one[0].texts for one in (train, val)] == [("c0", "c2"), ("c1",)]
    assert [test[index].texts for index in (0, 1)] == [("a person",), ("a, b",)]
    assert {one.frames for one in (train, val, test)} == {8}
    assert Path(str(test[1].image)).name == "video7020.mp4"


def test_flickrs_first_file_has_no_splits(root: Path) -> None:
    home = miniature.flickr30k(root)
    shutil.rmtree(home / "annotations")
    source = open_source("flickr30k:all")
    assert [len(source[index].texts) for index in range(len(source))] == [5, 5, 5]
    found = r"results_20130124.token is there and does not say .* in which split, and dataset_flickr30k.json is not"
    with pytest.raises(UserError, match=found):
        open_source("flickr30k:test")


def test_all_questions_of_gqa_are_in_ten_files(root: Path) -> None:
    home = miniature.gqa(root)
    source = open_questions("gqa:train_all")
    assert [given.about.id for given in asked_of(source[0].meta).given] == [f"07{n:07}" for n in range(10)]
    (home / "train_all_questions" / "train_all_questions_3.json").unlink()
    with pytest.raises(
        UserError, match=r"1 of the 10 files train_all_questions/train_all_questions_\*.json are not"
    ):
        open_questions("gqa:train_all")
