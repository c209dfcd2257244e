"""BLIP-2 in `classify` and `score`: the best query counts, and an image's soft prompt serves all of its texts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_blip2 import Kind, make_image, model, write_language
from test_store import stored

import openblip
from openblip.checkpoints.store import save_model
from openblip.tasks.predictor import Predictor
from openblip.tasks.scoring import QUESTION

IMAGES = [make_image(number) for number in range(3)]
CLASSES, TEMPLATES = ("red bus", "dogs", "cat"), ("a {} on a road", "two {}")
OWN = [["two dogs"], ["birds", "the road"], ["a cat"]]


def opened(folder: pytest.TempPathFactory, kind: Kind | None) -> Predictor:
    place = folder.mktemp(str(kind))
    llm = None if kind is None else write_language(place / "llm", kind)
    made = model() if llm is None else model(language=llm, matches=False, qformer={"vocab_size": None})
    save_model(place / "m", stored(made) if llm is None else stored(made, llm))
    return openblip.load(place / "m", device="cpu", dtype="float32", batch_size=2)


def test_the_query_that_fits_best_counts(tmp_path_factory: pytest.TempPathFactory) -> None:
    predictor = opened(tmp_path_factory, None)
    images = predictor.embed_images(IMAGES)  # [3, Q, E]
    texts = [predictor.embed_texts([t.replace("{}", name) for t in TEMPLATES]).mean(0) for name in CLASSES]
    cosines = (images @ torch.stack([F.normalize(text, dim=-1) for text in texts]).T).amax(1)
    scale = 1 / predictor.model.temperature.item()
    for row, expected in zip(predictor.classify(IMAGES, CLASSES, templates=TEMPLATES), cosines, strict=True):
        shares = (expected * scale).softmax(0)
        for one in row:
            place = CLASSES.index(one.name)
            assert one.score == pytest.approx(float(expected[place]), abs=1e-4)
            assert one.probability == pytest.approx(float(shares[place]), abs=1e-3)
    for scores, matches in zip(predictor.score(IMAGES, OWN), predictor.match(IMAGES, OWN), strict=True):
        for one, match in zip(scores, matches, strict=True):
            assert one.itm_probability == pytest.approx(match.itm_probability, abs=1e-4)
            assert one.itc_similarity == pytest.approx(match.itc_similarity, abs=1e-4)
            assert one.log_prob is None


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_language_model_scores(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> None:
    predictor = opened(tmp_path_factory, kind)
    likelihoods = predictor.log_likelihood(IMAGES, OWN)
    for image, texts, scores, likely in zip(IMAGES, OWN, predictor.score(IMAGES, OWN), likelihoods, strict=True):
        for text, one, known in zip(texts, scores, likely, strict=True):
            assert one.log_prob == pytest.approx(known.log_prob, abs=1e-3)
            assert one.num_tokens == known.num_tokens
            (answered,) = predictor.answer(image, QUESTION.replace("{}", text), candidates=["yes", "no"])[0]
            yes = next(answer for answer in answered.answers if answer.text == "yes")
            assert one.vqa_probability == pytest.approx(math.exp(yes.log_prob), rel=1e-3)
            assert one.itm_probability is None
