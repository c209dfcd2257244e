"""Published datasets by name: every split of every card opens from a miniature copy; what is missing is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import miniature
import pytest

from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.data.cards import CARDS, find_split
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources import Source, open_source
from openblip.data.sources.composed import open_composed
from openblip.data.sources.dialogs import open_dialogs
from openblip.data.sources.questions import answers_of, asked_of, open_questions
from openblip.data.sources.statements import open_statements, statements_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.everything(tmp_path_factory.mktemp("data root"))


@pytest.fixture(autouse=True)
def _named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_ROOT, str(root))


def opened(name: str) -> Source:
    task = CARDS[name.partition(":")[0]].task
    openers = {
        "answering": open_questions,
        "nlvr": open_statements,
        "dialog": open_dialogs,
        "composed": open_composed,
    }
    return openers.get(task, open_source)(name)


@pytest.mark.parametrize("name", [f"{card.name}:{split}" for card in CARDS.values() for split in card.splits])
def test_every_split_of_every_card_opens(name: str) -> None:
    source = opened(name)
    assert not source.bad_rows
    assert source.name == name
    for index in range(len(source)):
        sample = source[index]
        for image in sample.images:
            assert isinstance(image, bytes) or image.is_file(), image
    form = CARDS[name.partition(":")[0]].splits[name.partition(":")[2]][0]
    if form.settings.get("need_texts", True):
        assert all(source[index].texts for index in range(len(source)))


def test_coco_train_lies_in_two_folders_and_more_than_five_captions_are_kept() -> None:
    train, test = open_source("coco:train"), open_source("coco:test")
    folders = [Path(str(train[index].image)).parent.name for index in range(len(train))]
    assert folders == ["train2014", "train2014", "val2014"]
    assert [len(train[index].texts) for index in range(3)] == [5, 5, 5]
    assert len(test[0].texts) == 6
    assert len(open_source("coco:train?pairs=true")) == 15


def test_coco_in_karpathys_own_file(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "coco" / "images", tmp_path / "coco" / "images")
    miniature.karpathy(tmp_path)
    source = open_source(f"coco:train?root={tmp_path}")
    assert [Path(str(source[index].image)).name for index in range(len(source))] == [
        "COCO_train2014_000000000009.jpg",
        "COCO_val2014_000000000133.jpg",  # restval
    ]
    assert open_source(f"coco:test?root={tmp_path}")[0].texts == ("Sentence 0 of 73.", "Sentence 1 of 73.")


@pytest.mark.parametrize("name", ["coco", "flickr30k", "nocaps", "gqa", "nlvr2"])
def test_files_of_blip_and_lavis_are_read(name: str, tmp_path: Path, root: Path) -> None:
    """Where the original annotations are not there."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.json", "*.tar"))
    miniature.derived(tmp_path)
    at = f"?root={tmp_path}"
    if name == "coco":
        (given,) = asked_of(open_questions(f"vqav2:val{at}")[0].meta).given
        assert (given.about.id, given.texts) == (7, ("net",) * 9 + ("mesh",))
        assert asked_of(open_questions(f"vqav2:test{at}")[0].meta).given[0].about.id == 8
        assert asked_of(open_questions(f"okvqa:val{at}")[0].meta).given[0].about.id == 9
    elif name == "gqa":
        assert asked_of(open_questions(f"gqa:testdev{at}")[0].meta).given[0].about.id == "201"
    elif name == "nlvr2":
        assert statements_of(open_statements(f"nlvr2:dev{at}")[0].meta)[0].label
    elif name == "nocaps":
        source = open_source(f"nocaps:val{at}")
        assert Path(str(source[0].image)).is_file()
        assert source[0].texts == ()
    else:
        assert open_source(f"flickr30k:val{at}")[0].texts == ("A dog.", "Two.")


def test_images_may_lie_beside_the_annotations(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "coco" / "images", tmp_path / "coco")
    shutil.copy(root / "coco" / "annotations" / "captions_val2014.json", tmp_path / "coco")
    source = open_source(f"coco:val2014?root={tmp_path}")
    assert len(source) == 3
    assert source[0].texts[0] == "Original 0 of 42."


def test_nocaps_has_each_image_once_with_its_domain() -> None:
    source = open_source("nocaps:val")
    assert len(source) == 3
    assert {len(source[index].texts) for index in range(3)} == {10}
    assert [source[index].meta["domain"] for index in range(3)] == ["in-domain", "near-domain", "out-domain"]


def test_textcaps_captions_are_grouped() -> None:
    assert open_source("textcaps:train")[0].texts == ("A sign that says 0", "A sign that says 1")


def test_visual_genome_images_lie_in_two_folders() -> None:
    source = open_source("vg:train")
    assert [Path(str(source[index].image)).parent.name for index in (0, 1)] == ["VG_100K", "VG_100K_2"]
    assert source[1].texts == ("region 0 of 2", "region 1 of 2", "region 2 of 2")
    assert answers_of(open_questions("vgqa:train")[0].meta)["What is this?"].merged == {"Thing 1.": 0.2}
    whole = open_questions("vgqa:train?answer_weight=1")[0].meta
    assert answers_of(whole)["What is this?"].merged == {"Thing 1.": 1.0}


def test_vqav2_keeps_ids_kinds_and_both_askings_of_a_question() -> None:
    asked = asked_of(open_questions("vqav2:val")[0].meta)
    assert asked.questions == ("What is this?", "Is it red?", "What is this?")
    assert [given.about.id for given in asked.given] == [42000, 42001, 42002]
    assert [given.about.kind for given in asked.given] == ["other", "yes/no", "other"]
    assert asked.given[0].texts == miniature.TEN_ANSWERS
    assert asked.given[2].texts == ("goal",) * 10
    assert asked.rule == "official"


def test_an_empty_answer_of_ten_counts_and_is_not_trained_on() -> None:
    given = answers_of(open_questions("vqav2:val")[1].meta)["How many?"]
    assert given.texts == ("2",) * 9 + ("",)
    assert given.merged == pytest.approx({"2": 0.9})


def test_test_splits_have_questions_without_answers() -> None:
    source = open_questions("vqav2:test-dev")
    assert Path(str(source[0].image)).name == "COCO_test2015_000000000001.jpg"
    (given,) = asked_of(source[0].meta).given
    assert (given.texts, given.about.id) == ((), 1000)


def test_aokvqa_has_string_ids_images_of_2017_and_choices() -> None:
    source = open_questions("aokvqa:val")
    assert Path(str(source[0].image)).parts[-2:] == ("val2017", "000000000025.jpg")
    asked = asked_of(source[0].meta)
    first, second, third = (given.about for given in asked.given)
    assert (first.id, first.choices, first.correct) == ("22valQ0zzz", ("Ride", "train", "carry", "tie"), 0)
    assert (second.correct, second.difficult, third.difficult) == (2, False, True)
    assert asked.given[0].texts[:4] == ("Ride", "Ride", "Ride", "train")
    assert asked.rule == "direct"


def test_gqa_ids_are_strings_and_kinds_are_open_or_binary() -> None:
    source = open_questions("gqa:testdev")
    given = [one for index in range(len(source)) for one in asked_of(source[index].meta).given]
    assert [one.about.id for one in given] == ["20000000", "20100001", "20200002"]
    assert [one.about.kind for one in given] == ["open", "binary", "open"]
    assert [one.texts for one in given] == [("Jeans",), ("yes",), ("a bed",)]


def test_nlvr2_labels_are_strings_and_images_come_in_pairs() -> None:
    source = open_statements("nlvr2:train")
    assert [statements_of(source[index].meta)[0].label for index in (0, 1)] == [False, True]
    assert [Path(str(image)).name for image in source[0].images] == ["train-10-0-img0.png", "train-10-0-img1.png"]


def test_image2dataset_shards() -> None:
    source = open_source("cc3m:train")
    assert len(source) == 4
    assert source[3].texts == ("web text 000010001",)


def test_a_setting_of_the_spec_goes_before_the_cards(root: Path) -> None:
    config = parse_spec(f"aokvqa:val?answer_column=other&rule=official&root={root}")
    found = find_split(SourceConfig(path=config.path, root=config.root, answer_column="other", questions=True))
    assert (found.answer_column, found.rule) == ("other", "direct")
    assert find_split(SourceConfig(path="aokvqa:val", questions=True, rule="official")).rule == "official"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cocoo:train", r'there is no dataset "cocoo" \(did you mean "coco"\?\)'),
        ("coco:trian", r'coco has no split "trian" \(did you mean "train"\?\)'),
        ("coco:", r'coco has no split "" \(known: train, val, test'),
        ("coco:val?split=test", "leave out split"),
        ("coco:val?root=/nowhere", "there is no folder of datasets /nowhere; set --data-root or OPENBLIP_DATA"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(name)


def test_without_a_root_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_ROOT)
    with pytest.raises(UserError, match="need the folder that holds them; set --data-root or OPENBLIP_DATA"):
        open_source("coco:test")


def test_missing_annotations_are_named_with_where_to_get_them(tmp_path: Path, root: Path) -> None:
    (tmp_path / "coco").symlink_to(root / "coco")
    with pytest.raises(
        UserError, match=r"vqav2:val is not complete in .*v2_OpenEnded.* and v2_mscoco.*s3.amazonaws"
    ):
        open_questions(f"vqav2:val?root={tmp_path}")
    home = tmp_path / "vqav2"
    home.mkdir()
    shutil.copy(root / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json", home)
    with pytest.raises(
        UserError, match=r"vqav2: v2_mscoco_val2014_annotations.json is not there"
    ):  # half of the pair
        open_questions(f"vqav2:val?root={tmp_path}")


def test_missing_images_are_named_with_where_to_get_them(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "coco", tmp_path / "coco")
    shutil.rmtree(tmp_path / "coco" / "images" / "val2014")
    (tmp_path / "coco" / "images" / "val2014.zip.part").write_bytes(b"PK")
    message = r"there are no images in .*val2014 \(.*val2014.zip.part is there.*unpack.*zips/val2014.zip"
    with pytest.raises(UserError, match=message):
        open_source(f"coco:train?root={tmp_path}")


def test_a_dataset_of_which_half_is_there_is_refused(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "coco", tmp_path / "coco")
    (tmp_path / "coco" / "images" / "train2014" / "COCO_train2014_000000000009.jpg").unlink()
    message = r"coco:train is not complete: 1 of 3 images looked at are missing.*zips/train2014.zip"
    with pytest.raises(UserError, match=message):
        open_source(f"coco:train?root={tmp_path}")
