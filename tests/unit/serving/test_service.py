"""The endpoints over HTTP: what they give, what they refuse and with which status."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from serving_small import ANSWERS, QUESTIONS, SIDE, TEXTS, FolderIndex, StandIn, ask, engine, png, post, predictors

from openblip.index.building import create, update
from openblip.index.entries import Place
from openblip.index.image_index import ImageIndex
from openblip.serving.app import Service
from openblip.serving.body import schema_of
from openblip.serving.limits import Limits
from openblip.serving.local import LocalEngine
from openblip.serving.schemas import CaptionRequest

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def service() -> Service:
    """Over models that compute."""
    return Service(engine(gather_ms=0))


def error_of(answer: httpx.Response, status: int) -> str:
    """The sentence of a refused request."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    return str(answer.json()["error"])


# What it gives -----------------------------------------------------------------------------------------------


def test_captions_by_beam_search_and_by_nucleus_sampling(service: Service) -> None:
    async def asking(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        fields: list[dict[str, Any]] = [
            {},
            {"beams": 2, "count": 2, "max_tokens": 4, "min_tokens": 1},
            {"top_p": 0.8, "temperature": 1.5, "seed": 4, "count": 3, "max_tokens": 5},
            {"top_p": 0.8, "temperature": 1.5, "seed": 4, "count": 3, "max_tokens": 5},
            {"top_p": 0.8, "temperature": 1.5, "seed": 5, "count": 3, "max_tokens": 5},
        ]
        return [
            (await client.post("/v1/caption", files={"image": png()}, data=one)).raise_for_status().json()
            for one in fields
        ]

    usual, beams, drawn, again, other = ask(service, asking)
    assert usual["model"] == "blip"
    assert [len(reply["captions"]) for reply in (usual, beams, drawn)] == [1, 2, 3]
    assert all(caption["num_tokens"] <= 4 for caption in beams["captions"])
    assert beams["captions"][0]["text"] != beams["captions"][1]["text"]
    assert drawn == again
    assert drawn != other


def test_json_and_forms_give_the_same(service: Service) -> None:
    image = png(2)
    encoded = base64.b64encode(image).decode()

    async def asking(client: httpx.AsyncClient) -> list[Any]:
        fields = {"texts": list(TEXTS[:2])}
        return [
            (await client.post("/v1/match", files={"image": image}, data=fields)).json(),
            (await client.post("/v1/match", json={"image": encoded, **fields})).json(),
            (await client.post("/v1/match", json={"image": f"data:image/png;base64,{encoded}", **fields})).json(),
            (await client.post("/v1/match", files={"x": ("", "")}, data={"image": encoded, **fields})).json(),
        ]

    form, plain, uri, refused = ask(service, asking)
    assert [match["text"] for match in form["matches"]] == list(TEXTS[:2])
    assert all(0 <= match["itm_probability"] <= 1 for match in form["matches"])
    assert form == plain == uri
    assert 'no field "x"' in refused["error"]


def test_answers_are_written_or_chosen(service: Service) -> None:
    async def asking(client: httpx.AsyncClient) -> list[Any]:
        both = {"questions": list(QUESTIONS[:2]), "count": 2}
        first = await client.post("/v1/answer", files={"image": png()}, data=both)
        second = await client.post("/v1/answer", files={"image": png()}, data={**both, "answers": list(ANSWERS)})
        return [one.raise_for_status().json() for one in (first, second)]

    free, chosen = ask(service, asking)
    assert free["model"] == "vqa"
    assert [one["question"] for one in free["questions"]] == list(QUESTIONS[:2])
    assert all(len(one["answers"]) == 2 for one in free["questions"])
    assert {answer["text"] for answer in chosen["questions"][0]["answers"]} == set(ANSWERS)


def test_embeddings_of_images_and_texts_are_of_one_space(service: Service) -> None:
    image = png(1)

    async def asking(client: httpx.AsyncClient) -> tuple[Any, Any, Any]:
        both = await client.post("/v1/embed", files={"image": image}, data={"texts": list(TEXTS[:2])})
        words = await client.post("/v1/embed", json={"texts": TEXTS[:2]})
        match = await client.post("/v1/match", files={"image": image}, data={"texts": list(TEXTS[:2])})
        return both.raise_for_status().json(), words.raise_for_status().json(), match.json()

    both, words, match = ask(service, asking)
    assert words["image"] is None
    assert words["texts"][0] == pytest.approx(both["texts"][0], abs=1e-6)
    for vector, one in zip(both["texts"], match["matches"], strict=True):
        cosine = sum(left * right for left, right in zip(both["image"], vector, strict=True))
        assert cosine == pytest.approx(one["itc_similarity"], abs=1e-5)


def test_heat_maps_as_numbers_and_as_an_image(service: Service) -> None:
    image = png(1, side=48)

    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        rows = ({"text": "a red bus"}, {}, {"text": "two dogs", "format": "png", "word": 1}, {"format": "png"})
        more = ({"text": "two dogs", "format": "png", "word": 2}, {"text": "two dogs", "layer": 9})
        return [await client.post("/v1/explain", files={"image": image}, data=one) for one in (*rows, *more)]

    matched, written, drawn, average, no_word, no_layer = ask(service, asking)
    assert matched.json()["by"] == "match"
    assert [one["word"] for one in matched.json()["words"]] == ["a", "red", "bus"]
    weights = matched.json()["words"][1]["weights"]
    best = max((value, (x + 0.5) / len(row), (y + 0.5) / len(weights)) for y, row in enumerate(weights)
               for x, value in enumerate(row))  # fmt: skip
    assert matched.json()["words"][1]["peak"] == pytest.approx(best[1:])
    assert written.json()["by"] == "caption"
    for answer in (drawn, average):
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.content)).size == (48, 48)
    assert drawn.content != average.content
    assert error_of(no_word, 422) == "word is 2; the text has the words 0 to 1"
    assert "there is no layer 9" in error_of(no_layer, 422)


def test_search_gives_ids_and_thumbnails_and_no_path(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"secret-{number}.png").write_bytes(png(number, side=400))
    (tmp_path / "secret-9.png").write_bytes(b"gone")
    service = Service(engine(index=(FolderIndex(tmp_path), "blip")))

    async def asking(client: httpx.AsyncClient) -> tuple[Any, ...]:
        found = (await client.post("/v1/search", json={"text": "two dogs", "count": 4})).raise_for_status()
        hits = found.json()["hits"]
        small = await client.get(hits[0]["thumbnail"])
        gone = await client.get(hits[3]["thumbnail"])
        unknown = await client.get("/v1/thumbnails/" + "0" * 24)
        like = await client.post("/v1/search", files={"image": png(1)}, data={"count": 1})
        both = await client.post("/v1/search", files={"image": png(1)}, data={"text": "two dogs"})
        return found, hits, small, gone, unknown, like, both

    found, hits, small, gone, unknown, like, both = ask(service, asking)
    assert "secret" not in found.text
    assert str(tmp_path) not in found.text
    assert hits[0] == {
        "id": hits[0]["id"],
        "score": 0.5,
        "itm": 0.9,
        "caption": "number 0",
        "thumbnail": f"/v1/thumbnails/{hits[0]['id']}",
    }
    assert Image.open(io.BytesIO(small.content)).size == (320, 320)
    assert error_of(gone, 404) == "this image is gone, or cannot be read any more"
    assert error_of(unknown, 404) == "no search has given this image lately"
    assert like.json()["hits"][0]["id"] == hits[0]["id"]
    assert error_of(both, 422) == "search for a text or for an image, one of them"


def test_half_a_character_and_other_odd_values(service: Service) -> None:
    image = base64.b64encode(png()).decode()

    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        fields = ({"model": "\ud800"}, {"seed": 2**70, "top_p": 0.9})
        replies = [
            await client.post(
                "/v1/caption",
                content=json.dumps({"image": image, **one}),
                headers={"content-type": "application/json"},
            )
            for one in fields
        ]
        replies.append(await client.post("/v1/match", json={"image": image, "texts": "two dogs"}))
        return [*replies, await client.get("/examples/a.png")]

    model, seed, texts, example = ask(service, asking)
    assert error_of(model, 422).startswith('there is no model "\\ud800"')
    assert error_of(seed, 422) == f"seed is {2**70}; it must fit into 64 bits"
    assert error_of(texts, 422) == "texts: it must be a list"
    assert "there is nothing here" in error_of(example, 404)


def test_thumbnails_of_images_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        member = tarfile.TarInfo("first.png")
        member.size = len(png(side=400))
        tar.addfile(member, io.BytesIO(png(side=400)))
    served = predictors()
    create(tmp_path / "index", served["blip"], "blip")
    with ImageIndex.open(tmp_path / "index", served["blip"]) as index:
        update(index, Place(str(tmp_path / "images.tar")))

        async def asking(client: httpx.AsyncClient) -> httpx.Response:
            found = (await client.post("/v1/search", json={"text": "two dogs"})).raise_for_status()
            return await client.get(found.json()["hits"][0]["thumbnail"])

        small = ask(Service(LocalEngine(served, index=(index, "blip"))), asking)
    assert Image.open(io.BytesIO(small.content)).size == (320, 320)


def test_what_is_served_is_told(service: Service) -> None:
    async def asking(client: httpx.AsyncClient) -> tuple[Any, Any]:
        told = (await client.get("/v1/models")).json()
        return told, await client.get(told["examples"][0]["image"])

    told, image = ask(service, asking)
    blip, vqa = told["models"]
    assert blip == {
        "id": "blip",
        "family": "blip",
        "can": ["caption", "match", "embed", "classify", "explain"],
        "image_size": [SIDE, SIDE],
    }
    assert vqa["can"] == ["answer"]
    assert told["search"] is False
    assert told["limits"]["queue"] == Limits().queue
    assert Image.open(io.BytesIO(image.content)).size == (256, 256)
    assert all(len(example["texts"]) == 3 for example in told["examples"])


def test_the_interface_describes_itself(service: Service) -> None:
    described = ask(service, lambda client: client.get("/openapi.json")).json()
    caption = described["paths"]["/v1/caption"]["post"]
    content = caption["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    schema = content["multipart/form-data"]["schema"]
    assert schema["required"] == ["image"]
    assert {"beams", "top_p", "temperature", "seed", "count", "max_tokens"} < set(schema["properties"])
    assert "429" in caption["responses"]
    assert schema["properties"].keys() == schema_of(CaptionRequest)["properties"].keys()


# What it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("caption", {}, "image: it is missing"),
        ("caption", {"image": png(), "beam": 3}, 'there is no field "beam" (did you mean "beams"?)'),
        ("caption", {"image": png(), "beams": "many"}, "beams: Input should be a valid integer"),
        ("caption", {"image": png(), "beams": 17}, "at most 16"),
        ("caption", {"image": png(), "count": 17, "top_p": 0.9}, "at most 16"),
        ("caption", {"image": png(), "max_tokens": 129}, "max_tokens is 129; the service writes at most 128"),
        ("caption", {"image": png(), "min_tokens": 9, "max_tokens": 8}, "min_new_tokens 9 is more than"),
        ("caption", {"image": png(), "beams": 3, "top_p": 0.9}, "exclude each other"),
        ("caption", {"image": png(), "temperature": 2}, "give top_p too"),
        ("caption", {"image": png(), "top_p": 1.5}, "top_p is 1.5"),
        ("caption", {"image": png(), "top_p": "nan"}, "top_p is nan"),
        ("caption", {"image": png(), "beams": -1}, "beams is -1; it must be at least 1"),
        ("caption", {"image": png(), "model": "vqa"}, "the model vqa cannot caption; it can answer"),
        ("caption", {"image": png(), "model": "blib"}, 'there is no model "blib" (did you mean "blip"?)'),
        ("caption", {"image": b""}, "the image cannot be used (empty)"),
        ("caption", {"image": b"GIF89a"}, "the image cannot be used (truncated)"),
        ("caption", {"image": png()[:100]}, "the image cannot be used (truncated)"),
        ("caption", {"image": b"<svg/>"}, "the image cannot be used (not-an-image)"),
        ("match", {"image": png()}, "texts: it is missing"),
        ("match", {"image": png(), "texts": ["a", " "]}, "texts: one is empty"),
        ("match", {"image": png(), "texts": ["dog"] * 257}, "there are 257; the service takes at most 256"),
        ("match", {"image": png(), "texts": "x" * 2001}, "one has 2001 characters; the service takes 2000"),
        ("match", {"image": png(), "texts": "dog " * 500}, "tokens, and the model takes"),
        ("answer", {"image": png(), "questions": "???" * 10, "prompt": "Q"}, "prompt"),
        ("answer", {"image": png(), "questions": "what?", "answers": [" "]}, "answers: one is empty"),
        ("embed", {"texts": []}, "texts: give at least one"),
        ("explain", {"image": png(), "text": "two dogs", "by": "luck"}, "by: Input should be 'caption' or 'match'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(service: Service, path: str, fields: dict[str, Any], said: str) -> None:
    sentence = error_of(post(service, f"/v1/{path}", **fields), 422)
    assert said in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("body", "content", "status", "said"),
    [
        (b"{", "application/json", 422, "the body is no JSON"),
        pytest.param(b"[" * 100_000, "application/json", 422, "the body is no JSON", id="deep"),
        (b"[]", "application/json", 422, "the body must be a JSON object"),
        (b'{"image": 3}', "application/json", 422, "image: in JSON it is a string"),
        (b'{"image": "?"}', "application/json", 422, "image: it is no base64"),
        (b'{"image": "http://localhost/a.png"}', "application/json", 422, "addresses are not opened"),
        (b'{"image": "file:///etc/passwd"}', "application/json", 422, "addresses are not opened"),
        (b'{"image": "data:image/png,abc"}', "application/json", 422, "a data URI must hold base64"),
        (b"image=a", "application/x-www-form-urlencoded", 415, "the body must be application/json or"),
        (b"abc", "multipart/form-data", 422, "the form cannot be read"),
        (b"abc", "multipart/form-data; boundary=x", 422, "the form cannot be read"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 422, "image: it is missing"),
        (b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nab', "multipart/form-data; "
         "boundary=x", 422, "image"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused(
    service: Service, body: bytes, content: str, status: int, said: str
) -> None:
    headers = {"content-type": content}
    answer = ask(service, lambda client: client.post("/v1/caption", content=body, headers=headers))
    assert said in error_of(answer, status)


def test_several_files_or_fields_given_twice_are_refused(service: Service) -> None:
    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        files = [("image", png(0)), ("image", png(1))]
        twice = {"seed": ["1", "2"]}
        return [
            await client.post("/v1/caption", files=files),
            await client.post("/v1/caption", files={"image": png()}, data=twice),
        ]

    images, seeds = ask(service, asking)
    assert "more than one is a file" in error_of(images, 422)
    assert error_of(seeds, 422) == "seed: it is given twice"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")  # 18 KB that would be 432 MB as RGB
    assert len(buffer.getvalue()) < 50_000
    answer = post(Service(engine()), "/v1/caption", image=buffer.getvalue())
    assert "12000 x 12000 pixels" in error_of(answer, 413)


def test_pixels_are_limited_as_told() -> None:
    for side, status in ((50, 200), (51, 413)):
        made = Service(engine(max_pixels=2500), Limits(pixels=2500))
        assert post(made, "/v1/caption", image=png(0, side)).status_code == status


def test_what_is_not_there(service: Service) -> None:
    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get("/v1/nothing"),
            await client.get("/v1/caption"),
            await client.post("/v1/search", json={"text": "a dog"}),
            await client.get("/examples/99.png"),
            await client.get("/../pyproject.toml"),
            await client.get("/page.css/"),
        ]

    nothing, method, search, example, above, slash = ask(service, asking)
    assert "there is nothing here" in error_of(nothing, 404)
    assert error_of(method, 405) == "not by this method"
    assert error_of(search, 404) == "this service has no image index; start it with --index"
    assert error_of(example, 404) == "there is no such example"
    assert above.status_code == slash.status_code == 404


def test_a_service_without_captioner_says_so() -> None:
    made = StandIn()
    made.models = {name: info for name, info in made.models.items() if name == "none"}
    assert error_of(post(Service(made), "/v1/caption", image=png()), 404) == "no model of this service can caption"


def answers_of_every_kind(service: Service) -> Iterator[httpx.Response]:
    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        image = {"image": (f"{REPO}/a.png", png()[:90])}
        return [
            await client.post("/v1/caption", files=image),
            await client.post("/v1/caption", files=image, data={"model": str(REPO)}),
            await client.post("/v1/match", files={"image": png()}, data={"texts": "zzz"}),
            await client.post("/v1/caption", files={"image": png()}),
            await client.get("/v1/models"),
            await client.get("/metrics"),
            await client.get("/openapi.json"),
            await client.get("/"),
        ]

    yield from ask(service, asking)


def test_no_answer_holds_a_path_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """Neither do those of a mistake of ours, whose exception names files."""
    failing = StandIn(result=FileNotFoundError(2, "no such file", f"{REPO}/weights.safetensors"))
    for made in (engine(), failing):
        for answer in answers_of_every_kind(Service(made)):
            told = answer.text.replace(f'there is no model \\"{str(REPO)[:60]}', "")  # the client's own word
            assert str(REPO) not in told
            assert "Traceback" not in told
            assert ".py" not in told
    assert "weights.safetensors" in caplog.text, "the log has what the answer has not"


def test_a_mistake_of_the_server_is_a_sentence_with_500(caplog: pytest.LogCaptureFixture) -> None:
    answer = post(Service(StandIn(result=ZeroDivisionError("x"))), "/v1/caption", image=png())
    assert error_of(answer, 500) == "the server has made a mistake, and noted it in its log"
    assert "ZeroDivisionError" in caplog.text
