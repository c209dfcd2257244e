"""Composed retrieval: the published files, multimodal features, ranks by hand, the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import miniature
import pytest
import small
import torch
import torch.nn.functional as F
from kept_results import kept_predictions

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.data.source_config import parse_spec
from openblip.data.sources.composed import Query, is_composed, open_composed, queries_of
from openblip.tasks.composed import evaluate_composed, slot_features
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.families.blip2 import Blip2Adapter
from openblip.tasks.registry import task_of

sys.path.append(str(Path(__file__).resolve().parents[1] / "blip2"))
import small_blip2

TEXTS = ("a red bus on a road", "two dogs", "a cat on a red chair")


@pytest.fixture(autouse=True)
def _named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))


def test_cirr(tmp_path: Path) -> None:
    miniature.cirr(tmp_path)
    source = open_composed("cirr:val")
    assert source.without_reference
    assert [source[index].key for index in range(len(source))] == [f"dev-{n}-0-img{n % 2}" for n in range(4)]
    assert all(source[index].image.is_file() for index in range(4))  # type: ignore[union-attr]
    (query,) = queries_of(source[0].meta)
    assert (query.text, query.target) == ("make it red", "dev-1-0-img1")
    assert query.group == ("dev-1-0-img1", "dev-2-0-img0", "dev-3-0-img1"), "without the reference"
    assert queries_of(source[3].meta) == ()
    assert len(open_composed("cirr:train")) == 4
    assert is_composed(parse_spec("cirr:val"))


def test_fashioniq(tmp_path: Path) -> None:
    miniature.fashioniq(tmp_path)
    source = open_composed("fashioniq:dress.val")
    assert not source.without_reference
    assert len(source) == 3
    assert queries_of(source[0].meta) == (Query("is solid black with no sleeves and Is black", "B00DV1"),)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five images and three queries of one's own."""
    for number in range(5):
        small.make_image(number).save(tmp_path / f"{number}.png")
    rows = [
        {"reference": "0.png", "text": TEXTS[0], "target": "1.png"},
        {"reference": "0.png", "text": TEXTS[1], "target": "2.png"},
        {"reference": "3.png", "text": TEXTS[2], "target": "4.png"},
    ]
    return miniature.write(tmp_path / "queries.jsonl", rows, lines=True)


def test_ranks_are_those_found_one_by_one(photos: Path) -> None:
    """Each image and each pair read alone."""
    adapter = Blip2Adapter(small_blip2.model(), small_blip2.tokenizer())
    assert task_of(adapter, [parse_spec(str(photos))]) == "composed"
    mixed = [parse_spec(str(photos)), parse_spec("hf:captions")]
    assert task_of(adapter, mixed) == task_of(adapter) == "pretraining"
    source = open_composed(str(photos))
    batches = evaluation_batches([source], small.PIXELS, samples=9, batch_size=2, clean="none", need_texts=False)
    metrics, records = evaluate_composed(adapter, batches, without_reference=True)
    (batch,) = evaluation_batches([source], small.PIXELS, samples=9, clean="none", need_texts=False)
    with torch.no_grad():
        embeds = [adapter.encode(image[None]) for image in batch.images]
        images = [adapter.query_features(one)[0] for one in embeds]
        for record in records:
            own = batch.keys.index(record["key"])
            asked = adapter.query_features(embeds[own], [record["text"]])[0]
            scores = [float(F.cosine_similarity(asked, image, dim=-1).mean()) for image in images]
            target = scores[batch.keys.index(record["target"])]
            better = [s for n, s in enumerate(scores) if n != own and s > target]
            assert record["rank"] == 1 + len(better)
            best = max((n for n in range(5) if n != own), key=lambda n: scores[n])
            assert record["found"][0] == batch.keys[best]
    ranks = [record["rank"] for record in records]
    assert metrics["recall@1"] == pytest.approx(sum(rank == 1 for rank in ranks) / 3)
    assert metrics["recall@5"] == metrics["recall@5, image"] == metrics["recall@5, text"] == 1.0
    assert "recall@10" not in metrics, "the gallery has five images"
    assert "recall_subset@1" not in metrics


def test_text_and_image_alone_are_the_models_own_scores(photos: Path) -> None:
    adapter = Blip2Adapter(small_blip2.model(), small_blip2.tokenizer())
    batches = list(
        evaluation_batches([open_composed(str(photos))], small.PIXELS, samples=9, clean="none", need_texts=False)
    )
    metrics, _ = evaluate_composed(adapter, batches, without_reference=False)
    with torch.no_grad():
        embeds = adapter.encode(batches[0].images)
        tokens = adapter.tokens(list(TEXTS))
        text = adapter.text_features(tokens.input_ids, tokens.attention_mask)
        cosine = adapter.similarities(text, adapter.image_features(embeds))
    keys = batches[0].keys
    first = [cosine[n].argmax().item() == keys.index(f"{target}.png") for n, target in enumerate((1, 2, 4))]
    assert metrics["recall@1, text"] == pytest.approx(sum(first) / 3)
    assert metrics["recall@1, image"] == 0.0, "nothing is as near to an image as itself"


def test_the_product_of_features_is_the_mean_cosine() -> None:
    one, two = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).split(1)
    expected = F.cosine_similarity(one, two, dim=-1).mean()
    torch.testing.assert_close((slot_features(one) @ slot_features(two).T)[0, 0], expected)


def test_recall_among_look_alikes(tmp_path: Path) -> None:
    """Of three candidates one is always among the best three."""
    miniature.cirr(tmp_path)
    adapter = Blip2Adapter(small_blip2.model(), small_blip2.tokenizer())
    source = open_composed("cirr:val")
    batches = evaluation_batches([source], small.PIXELS, samples=9, clean="none", need_texts=False)
    metrics, records = evaluate_composed(adapter, batches, without_reference=True)
    assert metrics["recall_subset@3"] == 1.0
    # The group is the whole gallery without the reference.
    assert metrics["recall_subset@1"] == metrics["recall@1"]
    assert len(records) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"reference": "0.png", "text": "", "target": "1.png"}], "holds no query with a reference.*bad-row"),
        ([{"reference": "0.png", "text": "a dog", "target": "../1.png"}], "leads out of the folder"),
    ],
)
def test_rows_that_ask_nothing_are_refused(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_composed(str(miniature.write(tmp_path / "queries.json", rows)))


def test_a_gallery_that_is_not_there_or_lacks_an_image_is_named(tmp_path: Path) -> None:
    home = miniature.cirr(tmp_path)
    split = home / "image_splits" / "split.rc2.val.json"
    listed = json.loads(split.read_text())
    del listed["dev-1-0-img1"]
    split.write_text(json.dumps(listed))
    with pytest.raises(UserError, match="names dev-1-0-img1, which is not in the gallery"):
        open_composed("cirr:val")
    split.unlink()
    with pytest.raises(UserError, match=r"needs the list of its gallery, .*split\.rc2\.val\.json"):
        open_composed("cirr:val")


def test_missing_images_and_settings_without_effect_are_refused(tmp_path: Path) -> None:
    miniature.fashioniq(tmp_path)
    with pytest.raises(UserError, match='does not read the setting "text_column"'):
        open_composed("fashioniq:dress.val?text_column=captions")
    (tmp_path / "fashioniq" / "images" / "B00DV1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images looked at are missing, the first .*B00DV1\.jpg"):
        open_composed("fashioniq:dress.val")


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = small_blip2.tokenizer()
    save_model(tmp_path / "model", StoredModel(small_blip2.model(), tokenizer), whole=True)
    words = ["--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(photos), "--model", str(tmp_path / "model"), *words]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert {"recall@1", "recall@5", "recall@1, image", "recall@1, text", "recall@1, image + text"} <= metrics.keys()
    assert [row["target"] for row in kept_predictions(tmp_path / "out")] == ["1.png", "2.png", "4.png"]
    save_model(tmp_path / "blip", StoredModel(small.model(), small.tokenizer()))
    assert main(["evaluate", str(photos), "--model", str(tmp_path / "blip"), "--device", "cpu"]) == 2
    assert "query features need a BLIP-2 model" in capsys.readouterr().err


def test_a_search_gives_what_the_measure_ranks(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small_blip2.model()
    predictor = small.predictor(model, small_blip2.tokenizer(), batch_size=2)
    source = open_composed(str(photos))
    batches = evaluation_batches([source], small.PIXELS, samples=9, clean="none", need_texts=False)
    _, records = evaluate_composed(predictor.adapter, batches, without_reference=False)  # type: ignore[arg-type]
    images = [str(tmp_path / f"{number}.png") for number in range(5)]
    with pytest.raises(UserError, match="starts from one image, not 2"):
        predictor.retrieve_composed(images, images[:2], TEXTS[0])
    found = predictor.retrieve_composed(images, images[0], TEXTS[0], top=5)
    assert [Path(one.item).name for one in found] == records[0]["found"]
    cosine = predictor.similarities(predictor.embed_texts(TEXTS[0]), predictor.embed_images(images))[0]
    by_name = {one.item: one.itc_similarity for one in found}
    torch.testing.assert_close(torch.tensor([by_name[name] for name in images]), cosine, rtol=1e-4, atol=1e-5)
    save_model(tmp_path / "model", StoredModel(model, small_blip2.tokenizer()), whole=True)
    capfd.readouterr()
    (tmp_path / "gallery").mkdir()
    for name in images:
        Path(name).rename(tmp_path / "gallery" / Path(name).name)
    (tmp_path / "gallery" / "bad.png").write_bytes(b"no image")
    words = ["retrieve", TEXTS[0], str(tmp_path / "gallery"), "--image", str(tmp_path / "gallery" / "0.png")]
    assert main([*words, "--model", str(tmp_path / "model"), "--device", "cpu", "--dtype", "float32"]) == 1
    output = capfd.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [Path(row["item"]).name for row in rows] == records[0]["found"]
    assert rows[0]["score"] == pytest.approx(found[0].score, abs=1e-4)
    assert "skipped" in output.err
    (tmp_path / "lines.txt").write_text("a\n")
    both = ["--texts", str(tmp_path / "lines.txt"), *words[3:], "--model", str(tmp_path / "model")]
    assert main(["retrieve", TEXTS[0], *both]) == 2
    assert "leave --texts out" in capfd.readouterr().err
