"""Experiments on real data: measures against sums by hand, the whole on made-up data, the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.experiments.real import BESIDE, VARIABLE, find_data
from openblip.experiments.real.measures import (
    Unseen,
    caption_metrics,
    chance,
    likelihood_metrics,
    matching_metrics,
    mean_place,
    perplexity,
    recalls,
    wrong_images,
)
from openblip.experiments.real.openstax import QUICK, SETTINGS, STAGES, images_read, run_config, unseen
from openblip.experiments.real.openstax_filter import judged
from openblip.experiments.results import spread
from openblip.models.blip import Blip, blip_config
from openblip.tasks.families.blip import BlipAdapter

WORDS = ("map", "man", "red", "tree", "chart", "two", "house", "boat")


# --- measures on made-up arrays


def test_wrong_images_are_permutations_within_the_group() -> None:
    books = ["a"] * 5 + ["b"] * 4 + ["c"]
    found = wrong_images(books, 3)
    assert torch.equal(found, wrong_images(books, 3))
    for row in found.tolist():
        assert sorted(row) == list(range(10))
        assert [books[other] for other in row] == books
        assert all(other != own for own, other in enumerate(row[:9]))
        assert row[9] == 9
    for own in range(9):
        assert len({row[own] for row in found.tolist()}) == 3


def test_recalls_of_a_matrix_by_hand() -> None:
    scores = np.full((12, 12), 0.5)
    np.fill_diagonal(scores, 1.0)
    scores[0, 1:] = 2.0  # text 0 prefers all 11 other images, so it is nowhere
    scores[1, 2:5] = 2.0  # text 1 finds its image in place 4
    metrics = recalls(scores, scores, "_x")
    assert metrics["t2i_recall_x@1"] == pytest.approx(10 / 12)
    assert metrics["t2i_recall_x@5"] == pytest.approx(11 / 12)
    assert metrics["t2i_recall_x@10"] == pytest.approx(11 / 12)
    # Every image but 0 has text 0 before its own; images 2, 3 and 4 have text 1 as well.
    assert metrics["i2t_recall_x@1"] == pytest.approx(1 / 12)
    assert metrics["i2t_recall_x@5"] == 1.0


def test_mean_place_by_hand() -> None:
    scores = np.array([[3.0, 1.0, 1.0], [5.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    # Below the right one are, of 2: for the texts 2, a tie, 2; for the images 1, 2, a tie.
    assert mean_place(scores) == pytest.approx(((1 + 0.25 + 1) / 3 + (0.5 + 1 + 0.25) / 3) / 2)
    assert mean_place(np.eye(4)) == 1.0
    assert mean_place(np.zeros((4, 4))) == 0.5


def test_who_knows_only_the_book_is_at_chance_within_it() -> None:
    books = ["a"] * 3 + ["b"] * 5
    scores = np.asarray([[float(one == other) for other in books] for one in books])
    assert mean_place(scores) > 0.7
    assert mean_place(scores, books) == 0.5


def test_chance_by_hand() -> None:
    metrics = chance(["a"] * 5 + ["b"] * 15)
    assert metrics["recall@1"] == 0.05
    assert metrics["recall@10"] == 0.5
    assert metrics["recall@1_luck"] == pytest.approx(0.05 + 2 * (0.05 * 0.95 / 20) ** 0.5)
    assert metrics["recall@1_knowing_the_book"] == pytest.approx(2 / 20)
    assert metrics["recall@10_knowing_the_book"] == pytest.approx((5 * 1 + 15 * 10 / 15) / 20)


def test_perplexity_of_an_even_guess_is_the_number_of_words() -> None:
    counts = torch.tensor([3, 10, 1])
    assert perplexity(-counts * np.log(50.0), counts) == pytest.approx(50.0)


def test_spread_is_the_sample_standard_deviation() -> None:
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0, "seeds": [1.0, 2.0, 3.0]}
    assert spread([0.25]) == {"mean": 0.25, "sd": 0.0, "seeds": [0.25]}


# --- measures of a model


@pytest.fixture(scope="module")
def nano() -> BlipAdapter:
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train(iter([" ".join(WORDS)]), vocab_size=100)
    model = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=32)).eval()
    return BlipAdapter(model, tokenizer)


def made_up(images: torch.Tensor) -> Unseen:
    """Images of two books with a text of two words each."""
    count = len(images)
    texts = [f"{WORDS[i % 8]} {WORDS[(3 * i + 1) % 7]}" for i in range(count)]
    batch = Batch(
        images=images,
        texts=texts,
        image_ids=torch.arange(count),
        keys=[str(i) for i in range(count)],
        meta=[{} for _ in range(count)],
        image_index=torch.arange(count),
    )
    return Unseen.of([batch], ["a"] * (count // 2) + ["b"] * (count - count // 2), wrong=3)


def test_images_that_are_all_alike_are_worth_nothing(nano: BlipAdapter) -> None:
    alike = made_up(torch.full((12, 3, 32, 32), 100, dtype=torch.uint8))
    found = matching_metrics(nano, alike, rerank_k=4, max_length=10)
    for name in ("itc_auc", "itc_auc_same_book", "itm_auc", "itm_auc_same_book"):
        assert found[name] == pytest.approx(0.5, abs=0.02), name  # rounding decides between equals
    assert found["t2i_recall@1"] == 0.0  # a tie counts against the model
    likely = likelihood_metrics(nano, alike, max_length=10)
    assert likely["perplexity_right"] == pytest.approx(likely["perplexity_wrong"], rel=1e-5)
    assert likely["perplexity_right"] == pytest.approx(likely["perplexity_same_book"], rel=1e-5)
    assert 1 < likely["perplexity_right"] < 200
    captions, records = caption_metrics(nano, alike, seed=0)
    assert captions["distinct_beam"] == pytest.approx(1 / 12)
    assert captions["CIDEr_beam"] == captions["CIDEr_beam_wrong"] == captions["CIDEr_beam_same_book"]
    assert [record["image"] for record in records] == alike.keys
    assert [record["alt_text"] for record in records] == alike.texts


def test_likelihood_sees_which_image_it_is_given(nano: BlipAdapter) -> None:
    """The measure against sums made image by image, on images that differ."""
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    collection = made_up(images)
    found = likelihood_metrics(nano, collection, max_length=10)
    sums = {"right": 0.0, "wrong": 0.0}
    tokens = preferred = 0
    for own, other in enumerate(collection.wrong[0].tolist()):
        each = {}
        for name, which in (("right", own), ("wrong", other)):
            memory = nano.remember(nano.encode(images[which : which + 1]))
            value, count = nano.score_own(memory, [collection.texts[own]])
            each[name] = float(value.detach())
            sums[name] += each[name]
        tokens += int(count)
        preferred += each["right"] > each["wrong"]
    assert found["perplexity_right"] == pytest.approx(np.exp(-sums["right"] / tokens), rel=1e-4)
    assert found["perplexity_wrong"] == pytest.approx(np.exp(-sums["wrong"] / tokens), rel=1e-4)
    assert found["prefers_right"] == pytest.approx(preferred / 8)


# --- the experiment on data made on the spot


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the real one: 12, 6 and 8 images, one of them without a book caption."""
    root = tmp_path_factory.mktemp("real")
    folder = root / "openstax"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(["train"] * 12 + ["val"] * 6 + ["test"] * 8):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
        text = " ".join(rng.choice(WORDS, 8))
        rows.append(
            {
                "image": f"images/{number}.jpg",
                "caption": f"A {text}, {number}.",
                "web_text": "" if number == 0 else f"Figure {number} (credit: {text})",
                "split": split,
                "book": f"book-{number % 2}",
                "image_id": f"{number:04}",
            }
        )
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.mark.slow
def test_the_experiment_runs_and_takes_up_what_is_finished(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiments", "openstax", "--data", str(data), "--out", str(tmp_path), "--quick", "--seeds", "2"]
    command += ["--set", "web_share=0.5"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "results.json").read_text()) == result
    assert list(result["stages"]) == list(STAGES)
    assert result["settings"]["web_share"] == 0.5
    assert str(data) not in json.dumps(result), "a result names no folder of the machine"
    assert result["data"]["train web_text"] == {"samples": 12, "skipped": {"no-text": 1}}
    assert result["data"]["test caption"] == {"samples": 8, "skipped": {}}
    assert [len(source["path"]) > 0 for source in result["runs"]["pretrain"]["sources"]] == [True, True]
    for name in ("t2i_recall_itm@1", "itm_auc", "perplexity_wrong", "CIDEr_beam"):
        for stage, metrics in result["stages"].items():
            missing = {"captioner": ("t2i", "itm"), "retrieval": ("perp", "CIDEr")}.get(stage, ())
            if name.startswith(missing):
                assert name not in metrics["test"]
            else:
                assert len(metrics["test"][name]["seeds"]) == 2
    assert result["stages"]["pretrain"]["steps"] == [QUICK.pretrain_steps] * 2
    assert result["stages"]["retrieval"]["best_on_val"][0]["name"] == "mean_auc"
    assert len(result["captions"]["evenly spread"]) == 8

    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/*.json")}
    assert len(made) == 2 * (len(STAGES) + 1)
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["stages"] == result["stages"]
    assert made == {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/*.json")}
    assert main(command[:-2]) == 2
    assert "web_share: 0.5 -> 0.0" in capsys.readouterr().err

    # The filter takes the models up.
    assert main(["experiments", "openstax-filter", *command[2:]]) == 0
    filtered = json.loads(capsys.readouterr().out)
    assert made.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/*.json")}.items()
    assert json.loads((tmp_path / "filter-results.json").read_text()) == filtered
    assert filtered["images"] == 8
    assert len(filtered["test"]["auc_other"]["seeds"]) == 2
    kinds = [text["kind"] for text in filtered["examples"][0]["texts"]]
    assert kinds == ["own", "other", "same book", "book caption", "written"]
    noisy = [json.loads(line) for line in (tmp_path / "seed-0" / "test.jsonl").read_text().splitlines()]
    own = {line["image"]: line["captions"][0] for line in noisy}
    for line in noisy:
        assert set(line["captions"][1:3]) <= set(own.values()) - {own[line["image"]]}


def test_a_filter_is_judged_by_hand() -> None:
    scores = [
        {"own": 0.9, "other": 0.2, "book caption": 0.6, "written": 0.5},
        {"own": 0.4, "other": 0.7, "same book": 0.3, "book caption": 0.5, "written": 0.1},
        {"own": 0.6, "other": 0.1, "written": 0.7},
        {"own": 0.8, "other": 0.45, "written": 0.2},
    ]
    metrics = judged(scores, 0.5, "x")
    assert (metrics["precision_x"], metrics["recall_x"]) == (3 / 4, 3 / 4)
    assert (metrics["kept_other_x"], metrics["kept_book caption_x"], metrics["kept_same book_x"]) == (0.25, 1.0, 0)
    assert metrics["auc_other"] == 13 / 16
    assert (metrics["own_over_book caption"], metrics["own_over_written"]) == (0.5, 0.75)
    assert "precision_y" not in judged(scores, 1.0, "y")


def test_a_captioner_and_a_matcher_come_from_the_pretrained_model() -> None:
    settings = SETTINGS["openstax-web"]
    runs = {stage: run_config(stage, Path("data"), Path("out"), 7, settings) for stage in STAGES[1:]}
    assert {stage: run.task for stage, run in runs.items()} == {
        "pretrain": "pretraining",
        "captioner": "captioning",
        "retrieval": "retrieval",
    }
    assert [source.text_column for source in runs["pretrain"].sources] == ["caption", "web_text"]
    for stage in ("captioner", "retrieval"):
        assert Path(runs[stage].model) == Path("out/pretrain/best")
        assert [source.text_column for source in runs[stage].sources] == ["caption"]
    assert all(source.split == "train" for run in runs.values() for source in run.sources)
    assert all(run.train.seed == 7 and not run.validation for run in runs.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["openstaks"], "openstaks"),
        (["openstax", "--seeds", "0"], "--seeds must be at least 1"),
        (["openstax", "--quick", "--store", "result.json"], "leave out --quick"),
        (["openstax", "--tower", "runs/x"], "--tower is of the experiments blip2 and compare"),
        (["capfilt", "--data", "nowhere"], "--data is of experiments on real data"),
        (["openstax", "--data", "nowhere"], 'there is no data set "openstax" in nowhere'),
        (["openstax", "--data", "nowhere", "--set", "widht=3"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiments", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_the_data_are_found_by_option_and_variable(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(data))
    assert find_data("openstax") == data / "openstax"
    monkeypatch.setenv(VARIABLE, "elsewhere")
    assert find_data("openstax", data) == data / "openstax"
    with pytest.raises(UserError, match=VARIABLE):
        find_data("openstax")


# --- the real data


def real_data() -> Path:
    try:
        return find_data("openstax")
    except UserError:
        pytest.skip(f"the real data are neither in {VARIABLE} nor in {BESIDE.name}")


@pytest.mark.slow
def test_every_real_image_is_read() -> None:
    folder = real_data()
    read = images_read(folder)
    sizes = {"train": 1204, "val": 341, "test": 355}
    for split, size in sizes.items():
        assert read[f"{split} caption"] == {"samples": size, "skipped": {}}
    without = sum(read[f"{split} web_text"]["skipped"].get("no-text", 0) for split in sizes)
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert without == sum(not row["web_text"].strip() for row in rows)


def test_no_book_of_the_test_images_is_trained_on() -> None:
    folder = real_data()
    images = unseen(folder, "test", 32)
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = {row["book"] for row in rows if row["split"] != "test"}
    assert len(images.keys) == 355
    assert set(images.books).isdisjoint(trained)
    assert round(chance(images.books)["recall@1"], 4) == 0.0028
