"""Scores of pairs: each measure by hand, in any batch; pairs in files, in order; the command and its mistakes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli import score as command
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.sinks import read_rows, write_rows
from openblip.data.sources.pairs import Pair, read_pairs
from openblip.models.dual import BlipDual, DualConfig
from openblip.tasks.predictor import Predictor
from openblip.tasks.results import Score
from openblip.tasks.scoring import QUESTION, _blocks

IMAGES = [small.make_image(number) for number in range(5)]
OWN = [
    ["two dogs"],
    ["birds", "the road", "a red bus on a road"],
    ["a long chair"],
    ["two dogs", "Birds!"],
    ["birds"],
]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return small.predictor(small.model(), small.tokenizer(), {"prompt": "a "}, batch_size=3)


@pytest.fixture(scope="module")
def asker() -> Predictor:
    return small.predictor(small.vqa_model(), small.vqa_tokenizer(), batch_size=3)


def test_scores_are_those_of_matching_and_likelihood(predictor: Predictor) -> None:
    found = predictor.score(IMAGES, OWN)
    matches, likelihoods = predictor.match(IMAGES, OWN), predictor.log_likelihood(IMAGES, OWN)
    for texts, scores, matched, likely in zip(OWN, found, matches, likelihoods, strict=True):
        assert [one.text for one in scores] == texts
        for one, match, known in zip(scores, matched, likely, strict=True):
            assert one.itm_probability == pytest.approx(match.itm_probability, abs=1e-5)
            assert one.itc_similarity == pytest.approx(match.itc_similarity, abs=1e-5)
            assert one.log_prob == pytest.approx(known.log_prob, abs=1e-3)  # sums of several tokens
            assert one.num_tokens == known.num_tokens
            assert one.log_prob_per_token == pytest.approx(-math.log(known.perplexity), abs=1e-3)
            assert one.vqa_probability is None
    plain = predictor.score(IMAGES[0], "two dogs", by=["likelihood"], prompt="")[0][0]
    assert plain.itm_probability is None
    assert plain.itc_similarity is None
    assert plain.log_prob == pytest.approx(
        predictor.log_likelihood(IMAGES[0], "two dogs", prompt="")[0][0].log_prob
    )


def test_vqa_score_is_the_likelihood_of_yes(asker: Predictor) -> None:
    texts = ["a cat on a chair", "two dogs"]
    for image, scores in zip(IMAGES, asker.score(IMAGES, texts), strict=True):
        for text, one in zip(texts, scores, strict=True):
            question = QUESTION.replace("{}", text)
            (answered,) = asker.answer(image, question, candidates=["yes"])[0]
            assert one.vqa_probability == pytest.approx(math.exp(answered.answers[0].log_prob), rel=1e-3)
            assert (one.itm_probability, one.itc_similarity, one.log_prob, one.log_prob_per_token) == (None,) * 4
            assert 0 < one.vqa_probability < 1
    # By hand: the decoder's probability of "yes" and of the end after it.
    (score,) = asker.score(IMAGES[0], "two dogs", question="is there a {}?", answer="no")[0]
    words, model = asker.tokenizer, asker.model
    with torch.no_grad():
        asked = asker.adapter.ask(asker.remember(IMAGES[0]), ["is there a two dogs?"])
        ids = words.encode(["no"], first="dec").input_ids
        steps = model.text_decoder(ids, None, memory=asked).log_softmax(-1)[0]
    by_hand = sum(float(steps[place, ids[0, place + 1]]) for place in range(ids.shape[1] - 1))
    assert score.vqa_probability == pytest.approx(math.exp(by_hand), rel=1e-3)


@pytest.mark.parametrize("which", ["predictor", "asker"])
def test_a_pair_alone_has_the_same_scores(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    for image, texts, scores in zip(IMAGES, OWN, model.score(IMAGES, OWN), strict=True):
        for text, one in zip(texts, scores, strict=True):
            (alone,) = model.score(image, text)[0]
            for name, value in asdict(alone).items():
                exact = value is None or name in ("text", "num_tokens")
                assert asdict(one)[name] == (value if exact else pytest.approx(value, rel=1e-3, abs=1e-4))


def test_an_image_is_encoded_once(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = predictor.adapter.encode
    monkeypatch.setattr(
        predictor.adapter, "encode", lambda pixels: (encoded.append(len(pixels)), encode(pixels))[1]
    )
    predictor.score(IMAGES, ["two dogs", "birds", "the road"])
    assert encoded == [3, 2]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_blocks_hold_every_text_once_with_its_image(limit: int) -> None:
    owners = torch.tensor([2, 0, 2, 1, 3, 2, 0, 5, 1])
    seen: list[int] = []
    for images, places in _blocks(owners, limit):
        assert places.numel() <= limit
        assert places.shape[0] == len(images)
        for image, row in zip(images, places, strict=True):
            assert (owners[row] == image).all()
        seen += places.flatten().tolist()
    assert sorted(seen) == list(range(len(owners)))


def test_what_is_refused(predictor: Predictor, asker: Predictor) -> None:
    for call, message in (
        (lambda: predictor.score(IMAGES[0], "two dogs", by=["itm", "vqa"]), "answers need a BLIP VQA model"),
        (lambda: predictor.score(IMAGES[0], "two dogs", by=["itn"]), r'no measure "itn" \(did you mean "it'),
        (lambda: asker.score(IMAGES[0], "two dogs", by=["itm"]), "matching needs a BLIP pre-training"),
        (lambda: asker.score(IMAGES[0], "two dogs", question="is it?"), r"has no \{\} in place of the text"),
        (lambda: predictor.score(IMAGES[0], "bus " * 80), "has 82 tokens"),
        (lambda: predictor.score(IMAGES, [["two dogs"]]), "there are texts for 1 images"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_two_towers_have_cosines_alone() -> None:
    torch.manual_seed(0)
    sizes = small.model().config
    model = BlipDual(DualConfig(vision=sizes.vision, text=sizes.text, embed_dim=16)).eval()
    towers = small.predictor(model, small.tokenizer())
    (score,) = towers.score(IMAGES[0], "two dogs")[0]
    cosine = float(towers.embed_images(IMAGES[0])[0] @ towers.embed_texts("two dogs")[0])
    assert score.itc_similarity == pytest.approx(cosine, abs=1e-5)
    assert (score.itm_probability, score.log_prob, score.vqa_probability) == (None, None, None)


ROWS: list[dict[str, Any]] = [
    {"id": "x", "image": "0.png", "text": "two dogs"},
    {"id": 7, "image": "1.png", "text": "birds"},
    {"id": "none", "image": "missing.png", "text": "birds"},
    {"id": "empty", "image": "1.png", "text": None},
    {"id": "foreign", "image": "1.png", "text": "犬"},
    {"id": "x", "image": "0.png", "text": "the road"},
    {"id": "out", "image": "../secret.png", "text": "birds"},
    {"id": None, "image": "0.png", "text": 2},
    {"id": "two", "image": "1.png", "text": ["a cat", "a red bus"]},
]
USED = [(0, "two dogs"), (1, "birds"), (5, "the road"), (8, "a cat"), (8, "a red bus")]


def write_jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    save_model(folder / "model", StoredModel(small.model(), small.tokenizer()))
    save_model(folder / "vqa", StoredModel(small.vqa_model(), small.vqa_tokenizer()))
    for number in range(3):
        small.make_image(number).save(folder / f"{number}.png")
    write_jsonl(folder / "pairs.jsonl")
    return folder


def test_rows_keep_their_place_and_their_id(here: Path) -> None:
    read = list(read_pairs("pairs.jsonl"))
    pairs = [one for one in read if not isinstance(one, BrokenSample)]
    assert [(one.row, one.id) for one in pairs] == [
        (0, "x"), (1, 7), (2, "none"), (4, "foreign"), (5, "x"), (7, None), (8, "two"), (8, "two")
    ]  # fmt: skip
    assert pairs[5].text == "2", "a number is a text too"
    broken = [(one.cause, one.key) for one in read if isinstance(one, BrokenSample)]
    assert broken == [("no-text", "pairs.jsonl line 4"), ("bad-row", "pairs.jsonl line 7")]
    table = [
        {**row, "id": str(row["id"]), "split": split} for row, split in zip(ROWS, ("train", "test"), strict=False)
    ]
    columns = ("id", "image", "text", "split")
    Path("pairs.csv").write_text(
        ",".join(columns) + "\n" + "".join(",".join(row[name] for name in columns) + "\n" for row in table)
    )
    write_rows("pairs.parquet", table, dict.fromkeys(columns, "string"))
    inside = [{"key": row["id"], "image": Path(row["image"]).read_bytes(), "text": row["text"]} for row in table]
    write_rows("inside.parquet", inside, {"key": "string", "image": "bytes", "text": "string"})

    def good(spec: str) -> list[Pair]:
        return [one for one in read_pairs(spec) if isinstance(one, Pair)]

    for spec in ("pairs.csv", "pairs.parquet", "inside.parquet"):
        assert [(one.row, one.id, one.text) for one in good(spec)] == [(0, "x", "two dogs"), (1, "7", "birds")]
    assert [one.row for one in good("pairs.csv?split=test")] == [1]
    assert [one.name for one in good("inside.parquet")] == ["inside.parquet row 0", "inside.parquet row 1"]
    Path("0.txt").write_text("two dogs\nbirds\n")
    assert [(one.id, one.text) for one in good(".?text_column=txt")] == [("0.png", "two dogs"), ("0.png", "birds")]
    drawn = good("world:test?n=3")
    assert len({one.row for one in drawn}) == 3
    assert len({command._name_of(one.image) for one in drawn}) == 3, "the texts of an image share it"
    with pytest.raises(UserError, match='has no column "prompt"'):
        list(read_pairs("pairs.csv?image_column=image&text_column=prompt"))


COMMAND = ("--device", "cpu", "--dtype", "float32", "--batch-size", "2")


def test_the_command_scores_rows_in_order(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("score", "pairs.jsonl", "--model", "model", *COMMAND)
    assert main([*run, "--summary", "means.json"]) == 1
    said = capfd.readouterr()
    records = [json.loads(line) for line in said.out.splitlines()]
    assert [(record["row"], record["text"]) for record in records] == USED
    assert [record.get("id") for record in records] == ["x", 7, "x", "two", "two"]
    model = small.predictor(small.model(), small.tokenizer())
    for record in records:
        (alone,) = model.score(here / record["image"], record["text"])[0]
        assert record["itm"] == pytest.approx(alone.itm_probability, abs=1e-4)
        assert record["itc"] == pytest.approx(alone.itc_similarity, abs=1e-4)
        assert record["log_prob"] == pytest.approx(alone.log_prob, abs=1e-3)
        assert record["log_prob_per_token"] == pytest.approx(alone.log_prob_per_token, abs=1e-3)
        assert record["num_tokens"] == alone.num_tokens
        assert "vqa" not in record
    skipped = [line for line in said.err.splitlines() if "skipped pairs.jsonl line" in line]
    assert [line.split("line ")[1][0] for line in skipped] == ["3", "4", "5", "7", "8"]
    assert "(missing): missing.png" in skipped[0]
    assert "5 rows done, 5 skipped" in said.err
    summary = json.loads((here / "means.json").read_text())
    assert (summary["rows"], summary["images"], summary["by"]) == (5, 2, ["itm", "itc", "likelihood"])
    for name, mean in summary["means"].items():
        assert mean == pytest.approx(sum(record[name] for record in records) / 5)
    assert [one["cause"] for one in summary["left_out"]] == [
        "missing",
        "no-text",
        "bad-text",
        "bad-row",
        "bad-text",
    ]
    monkeypatch.setattr(command, "_WINDOW_ROWS", 2)  # as in a file too large to be held
    assert main([*run, "--by", "itc,itm", "--out", "table.parquet"]) == 1
    rows = read_rows("table.parquet")
    assert [(row["row"], row["text"]) for row in rows] == USED
    assert [row["id"] for row in rows] == ["x", "7", "x", "two", "two"]
    assert [row["itm"] for row in rows] == pytest.approx([record["itm"] for record in records], abs=1e-4)
    assert {row["log_prob"] for row in rows} == {None}


def test_vqa_score_at_the_command_line(here: Path, capfd: pytest.CaptureFixture[str], asker: Predictor) -> None:
    write_jsonl(here / "good.jsonl", [ROWS[0], ROWS[1]])
    more = ("--question", "is there a {}?", "--answer", "no")
    assert main(["score", "good.jsonl", "--model", "vqa", *COMMAND, *more]) == 0
    said = capfd.readouterr()
    for line in said.out.splitlines():
        record = json.loads(line)
        (alone,) = asker.score(here / record["image"], record["text"], question="is there a {}?", answer="no")[0]
        assert record["vqa"] == pytest.approx(alone.vqa_probability, abs=1e-5)
    assert "means: VQAScore" in said.err


def test_mistakes_are_one_sentence(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_jsonl(here / "bad.jsonl", [ROWS[2], ROWS[2]])
    write_jsonl(here / "other.jsonl", [{"image": "0.png", "prompt": "two dogs"}])
    cases = {
        ("none.jsonl",): "there is no file or folder none.jsonl",
        ("other.jsonl",): "other.jsonl has no caption column; it has",
        ("pairs.jsonl", "--by", "itm,vqa"): "answers need a BLIP VQA model",
        ("pairs.jsonl", "--by", "all"): 'there is no measure "all"',
        ("pairs.jsonl", "--out", "pairs.jsonl"): "pairs.jsonl exists already",
        ("pairs.jsonl", "--out", "a.jsonl", "--summary", "./a.jsonl"): "a.jsonl is named for two different results",
        ("pairs.jsonl", "--question", "is it?"): "has no {} in place of the text",
    }
    for more, message in cases.items():
        assert main(["score", *more, "--model", "model", *COMMAND]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert message in line
    assert main(["score", "bad.jsonl", "--model", "model", *COMMAND]) == 2
    assert "no row of bad.jsonl can be used; the first of 2: missing" in capfd.readouterr().err


def test_a_text_of_half_a_character_is_left_out(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_jsonl(
        here / "half.jsonl", [{"image": "0.png", "text": "a red \ud83d"}, {"image": "0.png", "text": "two dogs"}]
    )
    assert main(["score", "half.jsonl", "--model", "model", *COMMAND]) == 1
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "half.jsonl line 1 (bad-text)" in said.err
    assert "is not UTF-8 at character 7" in said.err
    assert "openblip: 1 row done, 1 skipped" in said.err


def test_small_scores_keep_their_digits() -> None:
    pair = Pair(0, None, "0.png", Path("0.png"), "two dogs", "line 1")
    record = command._record(pair, Score("two dogs", None, None, None, 3, 1.23456789e-9), text_ids=False)
    assert record == {"row": 0, "image": "0.png", "text": "two dogs", "num_tokens": 3, "vqa": 1.2345679e-9}
