"""`/v1/hf/{model}` over a real port, by Hugging Face's own client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from serving_http import serving_at
from serving_small import QUESTIONS, TEXTS, StandIn, engine, png, predictors

from openblip.generation.config import DecodeConfig
from openblip.serving.app import Service
from openblip.serving.limits import Limits

LABELS = list(TEXTS[:3])
BATCHED = 1e-4
"""of float32 sums in another order"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A captioner that matches, and a model that answers."""
    with serving_at(Service(engine(gather_ms=0), Limits(texts=8))) as found:
        yield found


def client_of(address: str, model: str = "blip", **options: Any) -> InferenceClient:
    return InferenceClient(model=f"{address}/v1/hf/{model}", timeout=60, **options)


def test_image_to_text(address: str, tmp_path: Path) -> None:
    image, place = png(1), tmp_path / "photo.png"
    place.write_bytes(image)
    expected = predictors()["blip"].caption(image)[0][0].text
    client = client_of(address)
    assert client.image_to_text(image).generated_text == expected
    assert client.image_to_text(place).generated_text == expected


def test_visual_question_answering(address: str) -> None:
    image = png(2)
    found = client_of(address, "vqa").visual_question_answering(image, QUESTIONS[0], top_k=2)
    config = DecodeConfig(num_beams=3, num_sequences=2, min_new_tokens=1, max_new_tokens=10)
    ((answered,),) = predictors()["vqa"].answer(image, [QUESTIONS[0]], config=config)
    assert [one.answer for one in found] == [one.text for one in answered.answers]
    assert [one.score for one in found] == pytest.approx([one.probability for one in answered.answers], abs=BATCHED)
    assert len(client_of(address, "vqa").visual_question_answering(image, QUESTIONS[0])) == 1


@pytest.mark.parametrize("template", [None, "a photo of a {}"])
def test_zero_shot_image_classification(address: str, template: str | None) -> None:
    image = png(3)
    client = client_of(address)
    found = client.zero_shot_image_classification(image, LABELS, hypothesis_template=template)
    used = [template or "This is a photo of {}."]
    expected = predictors()["blip"].classify(image, LABELS, templates=used)[0]
    assert [one.label for one in found] == [one.name for one in expected]
    assert [one.score for one in found] == pytest.approx([one.probability for one in expected], abs=BATCHED)


def test_chats_by_the_same_client(address: str) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}]
    client = InferenceClient(base_url=f"{address}/v1", timeout=60)
    reply = client.chat_completion(messages, model="blip")
    assert reply.choices[0].message.content == predictors()["blip"].caption(png(1))[0][0].text
    pieces = client.chat_completion(messages, model="blip", stream=True, temperature=1.2, seed=3, max_tokens=9)
    again = client.chat_completion(messages, model="blip", temperature=1.2, seed=3, max_tokens=9)
    text = "".join(one.choices[0].delta.content or "" for one in pieces)
    assert text == again.choices[0].message.content


@pytest.mark.parametrize("inputs", ["plain", "pair"])
def test_the_documented_shapes(address: str, inputs: str) -> None:
    """As @huggingface/tasks describes them, which its client leaves in places."""
    image = base64.b64encode(png(2)).decode()
    if inputs == "plain":
        sent: Any = {
            "inputs": image,
            "parameters": {"generation_parameters": {"num_beams": 2, "max_new_tokens": 7}},
        }
        reply = httpx.post(f"{address}/v1/hf/blip", json=sent, timeout=60).raise_for_status().json()
        config = DecodeConfig(num_beams=2, min_new_tokens=5, max_new_tokens=7)
        assert reply == [{"generated_text": predictors()["blip"].caption(png(2), config=config)[0][0].text}]
    else:
        sent = {"inputs": {"image": image, "question": QUESTIONS[1]}, "parameters": {"top_k": 2}}
        reply = httpx.post(f"{address}/v1/hf/vqa", json=sent, timeout=60).raise_for_status().json()
        assert len(reply) == 2
        assert set(reply[0]) == {"score", "answer"}


def refused(address: str, model: str, **sent: Any) -> tuple[int, str]:
    answer = httpx.post(f"{address}/v1/hf/{model}", timeout=60, **sent)
    return answer.status_code, answer.json()["error"]


def test_mistakes_are_sentences(address: str) -> None:
    image = base64.b64encode(png()).decode()
    labels = {"candidate_labels": LABELS}
    for model, sent, status, said in (
        ("none", {"content": png()}, 422, 'there is no model "none"'),
        ("vqa", {"content": png()}, 422, "the model vqa cannot caption"),
        ("blip", {"content": b"GIF89a"}, 422, "the image cannot be used"),
        ("blip", {"content": png(), "headers": {"content-type": "text/plain"}}, 415, "the body must be an image"),
        ("blip", {"json": {"inputs": 3}}, 422, "inputs"),
        ("blip", {"json": {"inputs": "?"}}, 422, "image: it is no base64"),
        ("blip", {"json": {"inputs": "https://example.com/a.png"}}, 422, "addresses are not opened"),
        ("blip", {"json": {"inputs": image, "question": QUESTIONS[0]}}, 422, "the model blip cannot answer"),
        ("blip", {"json": {"inputs": image, "parameters": {"top_k": 4}}}, 422, '"top_k" is not known here'),
        ("vqa", {"json": {"inputs": image, "parameters": labels}}, 422, "the model vqa cannot classify"),
        ("blip", {"json": {"inputs": image, "parameters": {"candidate_labels": "dog"}}}, 422, "it must be a list"),
        ("blip", {"json": {"inputs": image, "parameters": {"candidate_labels": ["a"] * 9}}}, 422, "there are 9"),
    ):
        assert refused(address, model, **sent)[0] == status, sent  # type: ignore[arg-type]
        assert said in refused(address, model, **sent)[1]  # type: ignore[arg-type]


def test_the_client_tells_what_was_wrong_and_brings_its_key(address: str) -> None:
    with pytest.raises(HfHubHTTPError, match="cannot caption"):
        client_of(address, "vqa").image_to_text(png())
    with serving_at(Service(StandIn(), keys=["right"])) as guarded:
        with pytest.raises(HfHubHTTPError, match="API key"):
            client_of(guarded, "one", token="wrong").image_to_text(png())
        assert client_of(guarded, "one", token="right").image_to_text(png()).generated_text == "a bus"


def test_it_is_described(address: str) -> None:
    described = httpx.get(f"{address}/openapi.json").json()
    assert {"/v1/hf/{model}", "/v1/chat/completions", "/v1/classify", "/v1/models/{name}"} <= set(
        described["paths"]
    )
    sent = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert "image_url" in str(sent)
    assert "#/$defs" not in str(described), "a reference leads nowhere"
    names = set(described["components"]["schemas"])
    assert {"ChatReply", "HfLabel", "ClassifyReply"} <= names
