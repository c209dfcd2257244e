"""The predictor: any kind of picture, one or many, in any batch; search against brute force; clear words."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import small
import torch

from openblip.core.errors import UserError
from openblip.data.transforms import normalize
from openblip.generation.types import DecodeConfig
from openblip.models.blip import Blip
from openblip.tasks.caption import write_captions
from openblip.tasks.predictor import Predictor, find_images

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
FEW = DecodeConfig(num_beams=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def blip() -> Blip:
    return small.model()


@pytest.fixture
def predictor(blip: Blip) -> Predictor:
    return Predictor(blip, small.tokenizer(), batch_size=3)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(7):
        small.picture(number).save(folder / f"{number}.png")
    return find_images([folder])


def test_every_kind_of_picture_is_the_same(predictor: Predictor, paths: list[str]) -> None:
    image = small.picture(3)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    kinds = [paths[3], Path(paths[3]), image, np.asarray(image), encoded.getvalue()]
    expected = predictor.embed_images(paths)[3]
    for kind in kinds:
        torch.testing.assert_close(predictor.embed_images(kind), expected[None], **CLOSE)
    torch.testing.assert_close(predictor.embed_images(kinds), expected.expand(5, -1), **CLOSE)
    assert predictor.embed_images([]).shape == (0, len(expected))
    assert predictor.caption([]) == predictor.match([], "a dog") == []


def test_captions_are_those_of_the_model(predictor: Predictor, blip: Blip, paths: list[str]) -> None:
    found = predictor.caption(paths, FEW)
    with torch.no_grad():
        memory = blip.remember(blip.encode_image(normalize(predictor.pixels(paths))))
    expected = write_captions(blip, predictor.tokenizer, memory, FEW)
    assert [[c.text for c in one] for one in found] == [[c.text for c in one] for one in expected]
    assert predictor.caption(paths[4], FEW)[0][0].text == expected[4][0].text


def test_it_begins_with_the_prompt_it_was_trained_with(blip: Blip, paths: list[str]) -> None:
    trained = Predictor(blip, small.tokenizer(), {"prompt": "a red "})
    plain = Predictor(blip, small.tokenizer())
    assert trained.caption(paths[0], FEW) == plain.caption(paths[0], FEW, prompt="a red ")
    assert trained.caption(paths[0], FEW, prompt="") == plain.caption(paths[0], FEW)
    assert trained.caption(paths[0], FEW)[0][0].log_prob != plain.caption(paths[0], FEW)[0][0].log_prob


def test_samples_belong_to_the_picture_and_the_seed(predictor: Predictor, paths: list[str]) -> None:
    config = DecodeConfig(sample=True, top_p=0.9, num_sequences=3, max_new_tokens=6)
    whole = [[c.text for c in one] for one in predictor.caption(paths, config)]
    assert [[c.text for c in predictor.caption(path, config)[0]] for path in paths] == whole
    other = DecodeConfig(sample=True, top_p=0.9, num_sequences=3, max_new_tokens=6, seed=1)
    assert [[c.text for c in one] for one in predictor.caption(paths, other)] != whole


def test_matches_are_cosine_and_itm_of_each_pair(predictor: Predictor, blip: Blip, paths: list[str]) -> None:
    texts = ["Two DOGS!", "a red bus on a road"]
    cleaned = ["two dogs", "a red bus on a road"]
    words = predictor.tokenizer
    for path, row in zip(paths, predictor.match(paths, texts), strict=True):
        with torch.no_grad():
            embeds = blip.encode_image(normalize(predictor.pixels([path])))
            for match, text, clean in zip(row, texts, cleaned, strict=True):
                alone, paired = words.encode([clean]).input_ids, words.encode([clean], first="enc").input_ids
                cosine = float((blip.image_features(embeds) @ blip.text_features(alone, None).T)[0, 0])
                probability = float(blip.match(paired, None, blip.remember(embeds)).softmax(-1)[0, 1])
                assert match.text == text
                assert match.itc_similarity == pytest.approx(cosine, abs=1e-4)
                assert match.itm_probability == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize(("top", "rerank"), [(2, 0), (2, 1), (3, 5), (50, 4), (1, 50)])
def test_search_orders_by_itc_and_then_by_itm(
    predictor: Predictor, paths: list[str], top: int, rerank: int
) -> None:
    queries = ["two dogs", "a red bus"]
    matches = predictor.match(paths, queries)

    def expected(candidates: list[tuple[str, float, float]]) -> list[str]:
        """(item, cosine, ITM probability) in the order of a search."""
        by_itc = sorted(candidates, key=lambda c: -c[1])
        read = by_itc[: max(top, rerank)] if rerank else by_itc
        if rerank:
            read.sort(key=lambda c: -(c[1] + float(torch.logit(torch.tensor(c[2], dtype=torch.float64)))))
        return [item for item, _, _ in read[:top]]

    found = predictor.retrieve_images(paths, queries, top=top, rerank_k=rerank)
    for number, hits in enumerate(found):
        pairs = [
            (p, m[number].itc_similarity, m[number].itm_probability) for p, m in zip(paths, matches, strict=True)
        ]
        assert [hit.item for hit in hits] == expected(pairs)
        assert all((hit.itm_probability is None) == (rerank == 0) for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    texts = list(small.TEXTS)
    (read,) = predictor.match([paths[2]], texts)
    hits = predictor.retrieve_texts(paths[2], texts, top=top, rerank_k=rerank)
    assert [hit.item for hit in hits] == expected([(m.text, m.itc_similarity, m.itm_probability) for m in read])


def test_a_picture_that_cannot_be_read_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for picture, told in (
        (tmp_path / "none.png", r"none\.png cannot be used \(missing\)"),
        (str(tmp_path / "text.png"), r"text\.png cannot be used \(not-an-image\)"),
        (b"", r"a picture cannot be used \(empty\)"),
    ):
        with pytest.raises(UserError, match=told):
            predictor.caption(picture, FEW)


def test_pictures_are_found_in_files_folders_and_globs(paths: list[str], tmp_path: Path) -> None:
    folder = Path(paths[0]).parent
    assert find_images([folder / "0.png", folder]) == [paths[0], *paths]
    assert find_images([f"{folder}/[01].png"]) == paths[:2]
    with pytest.raises(UserError, match="no picture or folder"):
        find_images([tmp_path / "none"])
    with pytest.raises(UserError, match="there is no picture in"):
        find_images([tmp_path])
