"""Searching an index: the same as without one, and what only an index does."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import small
import torch
from index_small import Counting, build
from PIL import Image

from openblip.core.errors import UserError
from openblip.index import Filters, ImageIndex, features
from openblip.index.features import FEATURES, DiskFeatures
from openblip.index.stores import cache_folder

TEXT = "a dog beside a bus"


@pytest.fixture
def index(where: Path | str, photos: Path, predictor: Counting) -> ImageIndex:
    return build(where, predictor, photos)[0]


def paths_of(photos: Path) -> list[str]:
    return sorted(str(path) for path in photos.rglob("*.png"))


def test_hits_are_those_of_a_search_without_an_index(index: ImageIndex, photos: Path, predictor: Counting) -> None:
    for rerank in (0, 6):
        (expected,) = predictor.retrieve_images(paths_of(photos), [TEXT], top=4, rerank_k=rerank)
        hits = index.search(text=TEXT, count=4, rerank=rerank)
        assert [hit.path for hit in hits] == [found.item for found in expected]
        # Vectors and image features went through float16.
        assert [hit.itc for hit in hits] == pytest.approx([found.itc_similarity for found in expected], abs=2e-3)
        if rerank:
            assert [hit.itm for hit in hits] == pytest.approx([f.itm_probability for f in expected], abs=0.02)
        else:
            assert all(hit.itm is None and hit.score == hit.itc for hit in hits)
    assert hits[0].caption in small.TEXTS
    assert index.record(hits[0].id).path == hits[0].path
    with pytest.raises(UserError, match="holds no image with id 99"):
        index.record(99)


def test_a_score_is_the_similarity_and_the_logit_of_matched(index: ImageIndex, predictor: Counting) -> None:
    hits = index.search(text=TEXT, count=10, rerank=4)
    model = predictor.adapter.need("match")
    words = predictor.tokenizer.encode([TEXT], first=model.first)
    for hit in hits[:4]:
        with torch.no_grad():
            memory = model.remember(predictor.encode(next(predictor.whole(hit.path))))
            logits = model.match(words.input_ids, None, memory)[0]
        assert hit.score - hit.itc == pytest.approx(float(logits[1]), abs=0.02), "features went through float16"
        assert hit.itm == pytest.approx(float(logits.softmax(0)[1]), abs=0.02)
    assert [hit.score for hit in hits[:4]] == sorted((hit.score for hit in hits[:4]), reverse=True)
    assert all(hit.itm is None and hit.score == hit.itc for hit in hits[4:])


def test_an_image_finds_itself_and_its_copy(index: ImageIndex, photos: Path, predictor: Counting) -> None:
    hits = index.search(image=photos / "3.png", count=3)
    assert Path(hits[0].path).name == "3.png"
    assert hits[0].itc == pytest.approx(1, abs=2e-3)
    assert hits[1].itc < 0.999
    assert all(hit.itm is None for hit in hits), "there is no text for ITM to read"
    both = index.search(image=photos / "3.png", text="two dogs", count=10, rerank=0)
    similar = {hit.path: hit.itc for hit in index.search(image=photos / "3.png", count=10)}
    fitting = {hit.path: hit.itc for hit in index.search(text="two dogs", count=10, rerank=0)}
    assert {hit.path: hit.itc for hit in both} == pytest.approx(
        {path: similar[path] + fitting[path] for path in similar}, abs=1e-5
    )


def test_weighted_queries(index: ImageIndex, photos: Path, predictor: Counting) -> None:
    parts = {text: index.search(text=text, count=10, rerank=10) for text in ("two dogs", "the road")}
    itc, itm = ({t: {h.path: getattr(h, n) for h in hits} for t, hits in parts.items()} for n in ("itc", "itm"))
    hits = index.search(text="+2*two dogs -the road", count=10, rerank=10)
    assert len(hits) == 10
    for hit in hits:
        dogs, road = itm["two dogs"][hit.path], itm["the road"][hit.path]
        assert hit.itm == pytest.approx(dogs * (1 - road), abs=1e-4)
        assert hit.itc == pytest.approx(2 * itc["two dogs"][hit.path] - itc["the road"][hit.path], abs=1e-4)
        assert hit.score == pytest.approx(hit.itc + 2 * math.log(dogs) + math.log(1 - road), rel=1e-3, abs=1e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_filters_hold_before_the_best_are_chosen(index: ImageIndex, photos: Path) -> None:
    hits = index.search(text=TEXT, count=3, rerank=3, filters=Filters(folder=str(photos / "new")))
    assert len(hits) == 3
    assert all("/new/" in hit.path for hit in hits)
    (hit,) = index.search(text=TEXT, filters=Filters(words="number 4"))
    assert Path(hit.path).name == "4.png"
    assert index.search(text=TEXT, filters=Filters(words="nothing")) == []


def test_image_features_are_computed_once(
    where: Path | str, index: ImageIndex, photos: Path, predictor: Counting
) -> None:
    predictor.encoded = 0
    first = index.search(text=TEXT, rerank=5)
    assert predictor.encoded == 5
    again = ImageIndex.open(where, predictor)
    assert again.search(text=TEXT, rerank=5) == first
    assert predictor.encoded == 5
    kept = cache_folder(index.catalog) / FEATURES
    kept.unlink()
    without = ImageIndex.open(where, predictor, cache_bytes=0)
    assert without.search(text=TEXT, rerank=5) == first, "at hand or not, the same"
    assert not kept.exists()


def test_image_features_stay_within_their_bound(tmp_path: Path) -> None:
    features = DiskFeatures(tmp_path, 3 * 2 * 4 * 8)
    ones = {f"k{number}": torch.full((4, 8), float(number)) for number in range(5)}
    for key in ("k0", "k1", "k2"):
        features.put({key: ones[key]})
    assert features.get(["k0"])["k0"].tolist() == ones["k0"].tolist()
    features.put({"k3": ones["k3"]})
    assert features.nbytes == features.max_bytes
    assert sorted(features.get(list(ones))) == ["k0", "k2", "k3"], "k1 was used longest ago"
    features.close()
    (tmp_path / FEATURES).write_bytes(b"damaged" * 999)
    mended = DiskFeatures(tmp_path, 999)
    mended.put({"k4": ones["k4"]})
    assert sorted(mended.get(list(ones))) == ["k4"]


def test_image_features_without_a_file_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = {"k": torch.ones(4, 8)}
    (tmp_path / "a" / FEATURES).mkdir(parents=True)  # which cannot be opened
    (tmp_path / "b").mkdir()
    kept = DiskFeatures(tmp_path / "b", 999)
    kept.put(ones)
    monkeypatch.setattr(features, "_SCHEMA", "SELECT * FROM none")  # an OperationalError, as "database is locked"
    for folder in (tmp_path / "a", tmp_path / "b"):
        without = DiskFeatures(folder, 999)
        without.put(ones)
        assert without.get(["k"]) == {}
        assert without.nbytes == 0
    kept.close()
    monkeypatch.undo()
    assert list(DiskFeatures(tmp_path / "b", 999).get(["k"])) == ["k"], "what is not damaged stays"


def test_a_file_that_is_gone_is_told_last(index: ImageIndex, photos: Path) -> None:
    best = index.search(text=TEXT, rerank=0, count=1)[0]
    Path(best.path).unlink()
    hits = index.search(text=TEXT, rerank=10, count=10)
    assert [hit.path for hit in hits if hit.itm is None] == [best.path]
    assert hits[-1].path == best.path
    with pytest.raises(UserError, match=r"cannot be used \(missing\)"):
        index.image(best.id)


def test_an_open_index_sees_what_a_writer_adds(
    where: Path | str, index: ImageIndex, photos: Path, predictor: Counting
) -> None:
    assert len(index.search(text=TEXT, rerank=0, count=20)) == 10
    small.make_image(60).save(photos / "later.png")
    build(where, predictor, photos)
    assert len(index.search(text=TEXT, rerank=0, count=20)) == 11


def test_searches_that_cannot_be(index: ImageIndex, photos: Path) -> None:
    with pytest.raises(UserError, match="a search needs a text or an image"):
        index.search()
    with pytest.raises(UserError, match="at least 1 hit, not 0"):
        index.search(text=TEXT, count=0)
    with pytest.raises(UserError, match="holds no word"):
        index.search(text="...")
    with pytest.raises(UserError, match=r"cannot be used \(missing\)"):
        index.search(image=photos / "none.png")


def test_near_duplicates(tmp_path: Path, where: Path | str, photos: Path, predictor: Counting) -> None:
    """Smooth images, whose smaller copies look alike to a small model too."""
    folder = tmp_path / "smooth"
    folder.mkdir()
    for number in range(3):
        coarse = small.make_image(number + 20, side=4).resize((96, 96), Image.Resampling.BICUBIC)
        coarse.save(folder / f"{number}.png")
    Image.open(folder / "1.png").resize((64, 64), Image.Resampling.LANCZOS).save(folder / "1-small.jpg", quality=90)
    shutil.copy(folder / "2.png", folder / "2-copy.png")
    index, _ = build(where, predictor, folder, photos)
    # Noise, as in the other images, is alike to a model that learned nothing, but not by its look.
    by_vectors = index.duplicates(by="vectors", similarity=0.99, filters=Filters(folder=str(folder)))
    for groups in (index.duplicates(), by_vectors):
        names = [[Path(record.path).name for record in group] for group in groups]
        assert sorted(names) == [["1.png", "1-small.jpg"], ["2-copy.png", "2.png"]]
    assert index.duplicates(filters=Filters(folder=str(photos))) == []
