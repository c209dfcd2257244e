"""Retrieval against a computation that reads one image with one text at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import small
import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.models.blip import Blip
from openblip.models.pixels import normalize
from openblip.tasks import feature_rows, retrieval
from openblip.tasks.config import as_sources
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.families.blip import BlipAdapter
from openblip.tasks.feature_rows import FeatureRows
from openblip.tasks.forecast import Forecast
from openblip.tasks.retrieval import Collection, collect, evaluate_retrieval, match_logits, rerank

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the same sums of float32 in another order"""


@pytest.fixture(scope="module")
def blip() -> Blip:
    return small.model()


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return small.tokenizer()


def similarity(collection: Collection) -> Tensor:
    return collection.text_features @ collection.image_features.T


@pytest.fixture
def batches() -> list[Batch]:
    """Five images with one to three texts each, in two batches."""
    return [small.batch([0, 1, 1, 2, 2, 2]), small.batch([0, 1], first=3, text=6)]


def one_by_one(blip: Blip, tokenizer: TextTokenizer, batches: list[Batch]) -> tuple[Tensor, Tensor, list[int]]:
    """Cosines [C, I] and ITM logits [C, I, 2] of all texts and images, and the image of each text."""
    images = [image for batch in batches for image in batch.images]
    texts = [text for batch in batches for text in batch.texts]
    owners, before = [], 0
    for batch in batches:
        owners += [before + owner for owner in batch.image_index.tolist()]
        before += len(batch)
    cosine, itm = torch.empty(len(texts), len(images)), torch.empty(len(texts), len(images), 2)
    with torch.no_grad():
        for column, image in enumerate(images):
            embeds = blip.encode_image(normalize(image[None]))
            for row, text in enumerate(texts):
                alone, paired = tokenizer.encode([text]), tokenizer.encode([text], first="enc")
                features = blip.text_features(alone.input_ids, None)
                cosine[row, column] = (features @ blip.image_features(embeds).T)[0, 0]
                itm[row, column] = blip.match(paired.input_ids, None, blip.remember(embeds))[0]
    return cosine, itm, owners


def test_a_collection_holds_every_image_and_text_once(
    blip: Blip, tokenizer: TextTokenizer, batches: list[Batch]
) -> None:
    collection = collect(BlipAdapter(blip, tokenizer), batches)
    cosine, _, owners = one_by_one(blip, tokenizer, batches)
    assert collection.image_of_text.tolist() == owners == [0, 1, 1, 2, 2, 2, 3, 4]
    assert collection.keys == [f"image-{i}" for i in range(5)]
    torch.testing.assert_close(similarity(collection), cosine, **CLOSE)
    assert cosine.std() > 0.05, "the images and texts differ"


def test_texts_are_cut_at_words(blip: Blip, tokenizer: TextTokenizer, batches: list[Batch]) -> None:
    model = BlipAdapter(blip, tokenizer)
    whole, cut = collect(model, batches), collect(model, batches, max_words=2)
    assert cut.texts == [" ".join(text.split()[:2]) for text in whole.texts]
    assert cut.texts != whole.texts
    alone = blip.text_features(tokenizer.encode(cut.texts[:1]).input_ids, None)
    torch.testing.assert_close(cut.text_features[:1], alone, **CLOSE)
    assert collect(model, batches, max_words=50).texts == whole.texts


@pytest.mark.parametrize("max_rows", [256, 3])
def test_pairs_in_any_order_and_number_are_matched_as_alone(
    blip: Blip, tokenizer: TextTokenizer, batches: list[Batch], max_rows: int
) -> None:
    collection = collect(BlipAdapter(blip, tokenizer), batches)
    _, itm, _ = one_by_one(blip, tokenizer, batches)
    unequal = torch.tensor([[7, 4], [0, 0], [5, 2], [1, 0], [2, 4], [0, 4], [3, 1]])
    equal = torch.cartesian_prod(torch.arange(8), torch.arange(5)).flip(0)
    for pairs in (unequal, equal, unequal[:1]):
        found = match_logits(
            BlipAdapter(blip, tokenizer), collection.image_embeds, collection.text, pairs, max_rows=max_rows
        )
        torch.testing.assert_close(found, itm[pairs[:, 0], pairs[:, 1]], **CLOSE)


@pytest.mark.parametrize("k", [1, 2, 4, 100])
def test_reranking_against_brute_force(blip: Blip, tokenizer: TextTokenizer, batches: list[Batch], k: int) -> None:
    collection = collect(BlipAdapter(blip, tokenizer), batches)
    cosine, itm, _ = one_by_one(blip, tokenizer, batches)
    t2i, i2t = rerank(BlipAdapter(blip, tokenizer), collection, similarity(collection), k)
    matched = itm[..., 1]
    for found, scores, logits in ((t2i, cosine, matched), (i2t.T, cosine.T, matched.T)):
        for query in range(len(scores)):
            by_itc = sorted(range(scores.shape[1]), key=lambda i, q=query, s=scores: -float(s[q, i]))
            read, rest = by_itc[:k], by_itc[k:]
            read.sort(key=lambda i, q=query, s=scores, t=logits: -float(s[q, i] + t[q, i]))
            assert found[query].argsort(descending=True).tolist() == read + rest
            expected = scores[query, read] + logits[query, read]
            torch.testing.assert_close(found[query, read].float(), expected, **CLOSE)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_scores_are_those_of_the_published_evaluation(
    blip: Blip, tokenizer: TextTokenizer, batches: list[Batch], k: int
) -> None:
    """`evaluation` of BLIP's train_retrieval.py, which LAVIS repeats: `itm_head(...)[:, 1] + topk_sim`."""
    collection = collect(BlipAdapter(blip, tokenizer), batches)
    sims_matrix, itm, _ = one_by_one(blip, tokenizer, batches)
    t2i, i2t = rerank(BlipAdapter(blip, tokenizer), collection, similarity(collection), k)
    for found, sims, logits in ((t2i, sims_matrix, itm), (i2t.T, sims_matrix.T, itm.transpose(0, 1))):
        expected = torch.full(sims.shape, -100.0)
        for i, row in enumerate(sims):
            topk_sim, topk_idx = row.topk(k=k, dim=0)
            expected[i, topk_idx] = logits[i, topk_idx, 1] + topk_sim
        read = expected > -100
        torch.testing.assert_close(found[read].float(), expected[read], **CLOSE)
        assert (found[~read] < -1000).all()
        by_margin = sims + logits[..., 1] - logits[..., 0]
        assert not torch.equal(by_margin.argsort(1), (sims + logits[..., 1]).argsort(1)), "another order"


def test_the_numbers_are_those_of_the_rankings(blip: Blip, tokenizer: TextTokenizer, batches: list[Batch]) -> None:
    cosine, itm, owners = one_by_one(blip, tokenizer, batches)
    metrics = evaluate_retrieval(BlipAdapter(blip, tokenizer), batches, rerank_k=100)
    for suffix, scores in (("", cosine), ("_itm", cosine + itm[..., 1])):
        for k in (1, 5):
            best = scores.topk(min(k, 5), dim=1).indices.tolist()
            hits = [owner in chosen for owner, chosen in zip(owners, best, strict=True)]
            assert metrics[f"t2i_recall{suffix}@{k}"] == pytest.approx(sum(hits) / 8)
            best = scores.T.topk(k, dim=1).indices.tolist()
            hits = [any(owners[text] == image for text in chosen) for image, chosen in enumerate(best)]
            assert metrics[f"i2t_recall{suffix}@{k}"] == pytest.approx(sum(hits) / 5)
        t2i, i2t = ([metrics[f"{way}_recall{suffix}@{k}"] for k in (1, 5, 10)] for way in ("t2i", "i2t"))
        assert metrics[f"i2t_mean_recall{suffix}"] == pytest.approx(sum(i2t) / 3)
        assert metrics[f"mean_recall{suffix}"] == pytest.approx((sum(i2t) / 3 + sum(t2i) / 3) / 2)
    assert metrics["t2i_recall@10"] == 1.0
    assert 0 <= metrics["itm_accuracy"] <= 1
    assert 0 <= metrics["itm_auc"] <= 1
    assert "t2i_recall_itm@1" not in evaluate_retrieval(BlipAdapter(blip, tokenizer), batches, rerank_k=0)


def test_itm_accuracy_counts_own_and_other_pairs(
    blip: Blip, tokenizer: TextTokenizer, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ITM head that always says "matched" is right for own pairs alone; one that knows is always right."""
    owners = torch.tensor([0, 1, 1, 2, 2, 2, 3, 4])

    def knows(_model: object, _embeds: object, _text: object, pairs: Tensor, **_: object) -> Tensor:
        own = (owners[pairs[:, 0]] == pairs[:, 1]).float()
        # By "matched" alone the pairs are all alike: the difference from "not matched" tells them apart.
        return torch.stack((1 - 2 * own, torch.zeros(len(pairs))), dim=1)

    always = torch.tensor([0.0, 1.0])
    for judge, accuracy, auc in ((lambda *given, **_: always.repeat(len(given[3]), 1), 0.5, 0.5), (knows, 1, 1)):
        monkeypatch.setattr(retrieval, "match_logits", judge)
        metrics = evaluate_retrieval(BlipAdapter(blip, tokenizer), batches, rerank_k=2)
        assert metrics["itm_accuracy"] == accuracy
        assert metrics["itm_auc"] == auc


def test_an_image_is_projected_once_and_never_copied_for_a_text(
    blip: Blip, tokenizer: TextTokenizer, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image is read alone, which tells how many fit into memory."""
    collection = collect(BlipAdapter(blip, tokenizer), batches)
    projected: list[int] = []
    rows: list[tuple[int, int]] = []

    class Counting(BlipAdapter):
        def remember(self, image_embeds: Tensor):
            projected.append(len(image_embeds))
            return super().remember(image_embeds)

        def match(self, input_ids: Tensor, attention_mask: Tensor | None, memory):
            rows.append((len(input_ids), memory.batch_size))
            return super().match(input_ids, attention_mask, memory)

    pairs = torch.tensor([[7, 4], [0, 0], [5, 2], [1, 0], [2, 4], [0, 4], [3, 1]])
    _, itm, _ = one_by_one(blip, tokenizer, batches)
    found = match_logits(Counting(blip, tokenizer), collection.image_embeds, collection.text, pairs)
    torch.testing.assert_close(found, itm[pairs[:, 0], pairs[:, 1]], **CLOSE)
    assert sum(projected) == 4
    assert sorted(rows) == [(1, 1), (1, 1), (2, 1), (3, 1)]
    rows.clear()
    equal = torch.cartesian_prod(torch.arange(8), torch.arange(5))
    match_logits(Counting(blip, tokenizer), collection.image_embeds, collection.text, equal)
    assert rows == [(8, 1), (32, 4)], "images with equally many texts are read together"
    projected.clear()
    monkeypatch.setattr(retrieval, "_PROJECTED", 1)
    torch.testing.assert_close(
        match_logits(Counting(blip, tokenizer), collection.image_embeds, collection.text, pairs), found, **CLOSE
    )
    assert projected == [1] * 4, "no more memory than asked for"


def test_features_on_disk_give_the_same_ranking(
    blip: Blip, tokenizer: TextTokenizer, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    adapter = BlipAdapter(blip, tokenizer)
    kept = collect(adapter, batches)
    stored = collect(adapter, batches, max_bytes=kept.image_embeds[:4].nbytes)
    assert torch.equal(stored.image_embeds, kept.image_embeds)
    assert stored.image_embeds.untyped_storage().nbytes() == kept.image_embeds.nbytes
    for one, other in zip(
        rerank(adapter, kept, similarity(kept), 2), rerank(adapter, stored, similarity(stored), 2), strict=True
    ):
        assert torch.equal(one, other)
    assert evaluate_retrieval(adapter, batches, max_bytes=0) == evaluate_retrieval(adapter, batches)
    assert list(tmp_path.iterdir()) == [], "the file has no name"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_kept_in_their_dtype(dtype: torch.dtype) -> None:
    parts = [torch.randn(count, 3, 4).to(dtype) for count in (2, 1, 3)]
    with FeatureRows(max_bytes=2 * parts[0].nbytes) as rows:
        for part, on_disk in zip(parts, (False, False, True), strict=True):
            rows.append(part)
            assert rows.on_disk == on_disk
        found = rows.tensor()
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat(parts)), "readable after the file was closed"


def test_the_file_is_released_on_an_error(
    blip: Blip, tokenizer: TextTokenizer, batches: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(feature_rows.tempfile, "TemporaryFile", lambda: opened.append(real()) or opened[-1])

    def broken():
        yield batches[0]
        raise RuntimeError("the data ended")

    with pytest.raises(RuntimeError, match="the data ended"):
        collect(BlipAdapter(blip, tokenizer), broken(), max_bytes=0)
    assert [file.closed for file in opened] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_rows.tempfile, "TemporaryFile", full)
    with FeatureRows(0) as rows, pytest.raises(UserError, match="TMPDIR"):
        rows.append(torch.zeros(1, 2, 3))


def test_a_long_reranking_is_announced_once(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    forecast = Forecast("re-ranking", 100_000, "pairs", after=10, clock=lambda: now[0])
    for now[0] in (5.0, 20.0, 30.0):
        forecast.done(1000)
    assert capsys.readouterr().err == "re-ranking of 100,000 pairs takes about 16:40 (100 pairs a second)\n"
    short = Forecast("re-ranking", 2000, "pairs", after=10, clock=lambda: now[0])
    now[0] += 20
    short.done(1000)
    assert capsys.readouterr().err == ""


def test_each_process_measures_every_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sampler fills up the last batches of processes with samples that were there before."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for number in range(5):
        small.make_image(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(small.TEXTS[number])
    found = list(
        evaluation_batches(as_sources((str(tmp_path),)), small.PIXELS, samples=5, batch_size=2, clean="none")
    )
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert sorted(text for batch in found for text in batch.texts) == sorted(small.TEXTS[:5])
