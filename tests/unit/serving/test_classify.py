"""`/v1/classify` over a real port: what the predictor gives, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving_http import serving_at
from serving_small import TEXTS, engine, png, predictors

from openblip.serving.app import Service
from openblip.serving.limits import Limits

CLASSES = list(TEXTS[:4])
BATCHED = 1e-4
"""of float32 sums in another order"""


@pytest.fixture(scope="module")
def limited() -> Iterator[str]:
    """A service that takes few texts."""
    with serving_at(Service(engine(), Limits(texts=10))) as address:
        yield address


@pytest.mark.parametrize("by", ["itc", "itm"])
def test_it_gives_what_the_predictor_gives(by: Any) -> None:
    templates, image = ["a photo of a {}", "{} on a road"], png(3)
    expected = predictors()["blip"].classify(image, CLASSES, templates=templates, by=by)[0]
    service = Service(engine())
    with serving_at(service) as address, httpx.Client(base_url=address, timeout=60) as client:
        fields = {"classes": CLASSES, "templates": templates, "by": by}
        reply = client.post("/v1/classify", files={"image": image}, data=fields).raise_for_status().json()
        again = client.post("/v1/classify", files={"image": image}, data=fields).json()
        other = client.post("/v1/classify", files={"image": image}, data={"classes": CLASSES, "by": by}).json()
    assert reply == again
    assert reply["model"] == "blip"
    assert [one["name"] for one in reply["classes"]] == [one.name for one in expected]
    for given, wanted in zip(reply["classes"], expected, strict=True):
        assert given["probability"] == pytest.approx(wanted.probability, abs=BATCHED)
        assert given["score"] == pytest.approx(wanted.score, abs=BATCHED)
    assert other != reply, "the templates have no effect"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "classes: it is missing"),
        ({"classes": ["two dogs"]}, "at least two classes"),
        ({"classes": ["two dogs", "two dogs"]}, "classes are named twice"),
        ({"classes": CLASSES, "templates": ["a photo"]}, "has no {} in place of the class"),
        ({"classes": CLASSES, "templates": ["{}"] * 3}, "classes times templates are 12 texts"),
        ({"classes": ["dog"] * 11}, "there are 11; the service takes at most 10"),
        ({"classes": ["dog", " "]}, "classes: one is empty"),
        ({"classes": CLASSES, "by": "luck"}, "by: Input should be 'itc' or 'itm'"),
        ({"classes": CLASSES, "model": "vqa"}, "the model vqa cannot classify"),
    ],
)
def test_a_mistake_is_one_sentence(limited: str, fields: dict[str, Any], said: str) -> None:
    answer = httpx.post(f"{limited}/v1/classify", files={"image": png()}, data=fields, timeout=60)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_it_is_described(limited: str) -> None:
    described = httpx.get(f"{limited}/openapi.json").json()
    served = httpx.get(f"{limited}/v1/models").json()["models"]
    fields = described["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(fields["properties"]) == {"model", "image", "classes", "templates", "by"}
    assert {one["id"]: "classify" in one["can"] for one in served} == {"blip": True, "vqa": False}
