"""A measure over data some of which cannot be used: nothing is put in its place, and everybody is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniature
import pytest
import small
import spoiled
from kept_results import kept_predictions, kept_result

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.caption import caption
from openblip.cli.evaluate import evaluate
from openblip.cli.evaluated import repeated_ids
from openblip.cli.use import ask, embed, match, retrieve
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.data.clean import clean_caption
from openblip.data.measured import Measured
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.metrics.caption import caption_scores
from openblip.metrics.results import read_results
from openblip.recipes.small import small_pretrain
from openblip.report.results import results_tables
from openblip.tasks.config import as_sources
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.training import run_training


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "blip"
    save_model(folder, StoredModel(small.model(), small.tokenizer()))
    return folder


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vqa"
    save_model(
        folder,
        StoredModel(small.vqa_model(), small.vqa_tokenizer(), {"task": "vqa", "answers": list(small.ANSWERS)}),
    )
    return folder


def measure(
    capsys: pytest.CaptureFixture[str], model: Path, data: Path | str, **options: Any
) -> tuple[Any, str, int]:
    """The JSON that `openblip evaluate` prints, what it says on standard error, and its exit code."""
    capsys.readouterr()
    code = 0
    try:
        evaluate((str(data),), model=str(model), device="cpu", beams=1, max_new_tokens=5, rerank=2, **options)
    except SystemExit as ended:
        code = int(ended.code or 0)
    output = capsys.readouterr()
    return json.loads(output.out), output.err, code


@pytest.mark.parametrize("kind", ["blip", "vqa"])
def test_figures_are_those_of_what_can_be_used(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five images, two of them broken: three records, never one image twice; captions, retrieval and answers."""
    every, good = spoiled.write(tmp_path / "data", questions=kind == "vqa")
    model = request.getfixturevalue(kind)
    numbers, said, code = measure(capsys, model, every, out=tmp_path / "out")
    wanted, quiet, fine = measure(capsys, model, good, out=tmp_path / "fine")
    assert (code, fine) == (1, 0)
    left_out = numbers.pop("left_out")
    assert numbers.pop("num_left_out") == 2
    assert numbers == wanted
    assert {(one["key"], one["cause"]) for one in left_out} == {(f"{n}.jpg", c) for n, c in spoiled.BROKEN.items()}
    assert all(one["detail"] and one["source"] == str(every) for one in left_out)
    assert [record["key"] for record in kept_predictions(tmp_path / "out")] == [f"{n}.jpg" for n in spoiled.GOOD]
    stored = kept_result(tmp_path / "out")
    assert (stored["samples"], stored["left_out"]) == (3, left_out)
    assert "skipped 1.jpg (truncated)" in said
    used = "3 images with 3 questions" if kind == "vqa" else "3 images"
    assert f"measured on {used}, without 2 that cannot be used (1 truncated, 1 not-an-image)" in said
    assert f"{next((tmp_path / 'out').glob('*.json'))} lists all" in said
    decoding, *quiet_lines = quiet.splitlines()
    assert f"of {0 if kind == 'vqa' else 4} to 5 tokens by" in decoding
    assert quiet_lines == [f"openblip: the result is in {next((tmp_path / 'fine').glob('*.json'))}"]
    assert kept_result(tmp_path / "fine")["samples"] == 3


def test_rows_and_images_without_words_count_too(
    blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every, _ = spoiled.write(tmp_path / "data")
    lines = every.read_text().splitlines()
    every.write_text(
        "\n".join([lines[0], '{"image": "2.jpg", "capti', json.dumps({"image": "4.jpg", "caption": "..."})])
    )
    numbers, _, code = measure(capsys, blip, every)
    assert code == 1
    assert [(one["cause"], one["key"]) for one in numbers["left_out"]] == [
        ("bad-row", "all.jsonl line 2"),
        ("no-text", "4.jpg"),
    ]


def test_captions_are_compared_with_what_was_written(
    blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The official measures tokenize raw references; perplexity and retrieval read them as training does."""
    _, good = spoiled.write(tmp_path / "data")
    rows = [json.loads(line) for line in good.read_text().splitlines()]
    written = [["A red clock at 10:30 (left).", "..."], ["St. John's TWO squares!"], ["a blue circle"]]
    found = []
    for number, clean in enumerate((False, True)):
        own = [[clean_caption(text, None) for text in texts if text != "..."] for texts in written]
        for row, texts in zip(rows, own if clean else written, strict=True):
            row["caption"] = texts
        good.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(measure(capsys, blip, good, out=tmp_path / f"out-{number}")[0])
    records = kept_predictions(tmp_path / "out-0")
    assert [record["references"] for record in records] == [written[0][:1], *written[1:]]
    expected = caption_scores([record["caption"] for record in records], [written[0][:1], *written[1:]])
    assert {name: found[0][name] for name in expected} == pytest.approx(expected)
    for name in ("perplexity", "t2i_recall@1", "i2t_recall@1"):
        assert found[0][name] == found[1][name]


def test_only_so_many_are_told_one_by_one(blip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every, _ = spoiled.write(tmp_path / "data")
    with open(every, "a") as file:
        file.writelines(json.dumps({"image": f"gone{n}.jpg", "caption": "a dog"}) + "\n" for n in range(20))
    numbers, said, code = measure(capsys, blip, every)
    assert code == 1
    assert len(numbers["left_out"]) == 22
    assert said.count("skipped ") == 5
    assert "without 22 that cannot be used (20 missing, 1 truncated, 1 not-an-image)" in said


def test_nothing_left_to_measure_is_an_error(blip: Path, tmp_path: Path) -> None:
    every, _ = spoiled.write(tmp_path / "data")
    for path in every.parent.glob("*.jpg"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"nothing to measure on: no sample of .*all\.jsonl can be used \(0\.jpg, missing"
    ):
        evaluate((str(every),), model=str(blip), device="cpu")


def test_samples_beyond_those_asked_for_take_no_place(tmp_path: Path) -> None:
    """Of the first four, two are broken: two are measured on, and the fifth is not read in their place."""
    every, _ = spoiled.write(tmp_path / "data")
    measured = Measured()
    batches = evaluation_batches(
        as_sources((str(every),)), 32, samples=4, batch_size=2, clean="none", measured=measured
    )
    assert [batch.keys for batch in batches] == [["0.jpg"], ["2.jpg"]]
    assert (measured.num_images, len(measured.left_out)) == (2, 2)


def test_who_notes_nothing_is_stopped(tmp_path: Path) -> None:
    every, good = spoiled.write(tmp_path / "data")
    with pytest.raises(UserError, match=r"cannot use a sample of .*all\.jsonl \(1\.jpg, truncated"):
        list(evaluation_batches(as_sources((str(every),)), 32, samples=5, clean="none"))
    assert len(list(evaluation_batches(as_sources((str(good),)), 32, samples=5, clean="none"))) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_good_samples_without_doubles(tmp_path: Path, world_size: int, num_workers: int) -> None:
    """Of seven samples each good one comes once, on one rank; a smaller last batch is not filled up."""
    every, _ = spoiled.write(tmp_path / "data")
    for number in (5, 6):
        (every.parent / f"{number}.jpg").write_bytes(spoiled.image(number))
    with open(every, "a") as file:
        file.writelines(json.dumps({"image": f"{n}.jpg", "caption": "a dog"}) + "\n" for n in (5, 6))
    keys, skipped = [], 0
    for rank in range(world_size):
        loader = Loader(
            open_source(str(every)), evaluation_transform(32), 1, rank=rank, world_size=world_size, shuffle=False,
            drop_last=False, text_mode="all", leave_out=True, num_workers=num_workers,
        )  # fmt: skip
        keys += [key for batch in loader for key in batch.keys]
        skipped += loader.skipped.total
        loader.close()
    assert sorted(keys) == [f"{n}.jpg" for n in (0, 2, 4, 5, 6)]
    assert skipped == 2


def test_evaluation_in_training_notes_what_it_left_out(tmp_path: Path) -> None:
    every, good = spoiled.write(tmp_path / "data")
    config = small_pretrain((str(good),), model="nano", validation=(str(every),), steps=1)
    quiet = ("batch_size=2", "num_workers=0", "train.trackers=[]", "image_size=32", "rerank_k=2", "vocab_size=60")
    config = override(config, (*quiet, "decode.num_beams=1", "decode.max_new_tokens=4"))
    run_training(replace(config, train=replace(config.train, device="cpu")), tmp_path / "run", show=False)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (found,) = [record for record in records if record["split"] == "eval"]
    assert found["num_left_out"] == 2
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {(one["key"], one["use"]) for one in listed} == {("1.jpg", "validation"), ("3.jpg", "validation")}


def used(
    capfd: pytest.CaptureFixture[str], command: Callable[..., None], *words: object, **options: Any
) -> list[str]:
    """What a command gives results for, in order; it says that something was left out."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        command(*words, device="cpu", **options)
    output = capfd.readouterr()
    assert ended.value.code == 1
    assert "3 images done, 2 skipped" in output.err
    records = [json.loads(line) for line in output.out.splitlines()]
    return [Path(record.get("image") or record["item"]).name for record in records if "text" not in record]


def test_no_command_puts_another_image_in_the_place_of_a_broken_one(
    blip: Path, vqa: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoiled.write(tmp_path / "data")
    folder, good = (str(tmp_path / "data"),), [f"{n}.jpg" for n in spoiled.GOOD]
    assert used(capfd, caption, folder, model=str(blip), beams=1, max_new_tokens=5) == good
    assert used(capfd, match, folder, model=str(blip), text=("two dogs",)) == good
    assert used(capfd, embed, folder, model=str(blip)) == good
    assert used(capfd, ask, folder, model=str(vqa), question=("what is red?",), beams=1) == good
    assert sorted(used(capfd, retrieve, "two dogs", folder, model=str(blip), top=5, rerank=2)) == good


def test_a_result_counts_questions_beside_images(
    vqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    miniature.coco(tmp_path)
    miniature.vqav2(tmp_path)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    file = tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["answers"] = []
    file.write_text(json.dumps(content))
    assert measure(capsys, vqa, "vqav2:val", out=tmp_path / "out")[2] == 1
    (result,) = read_results(tmp_path / "out").results
    assert (result.samples, result.questions) == (2, 3)
    assert result.partial == "1 of the rows and images could not be used"
    (table,) = results_tables([result])
    assert table.rows[0][-1] == "2 with 3 questions, see note"


def test_ids_that_come_twice_are_told(vqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        small.make_image(number).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{n}.png", "question": "what?", "question_id": max(n, 1), "answer": "red"} for n in range(3)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, said, code = measure(capsys, vqa, tmp_path / "questions.jsonl")
    assert code == 0
    assert "1 id more than once in the data, first 1: each is measured, and these are not official figures" in said
    assert repeated_ids([{"identifier": "dev-1"}, {"identifier": "dev-1"}, {"key": "a"}, {"key": "a"}]) == ["dev-1"]
