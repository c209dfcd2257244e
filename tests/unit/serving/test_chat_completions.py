"""`/v1/chat/completions` over a real port, by OpenAI's own client."""

from __future__ import annotations

import asyncio
import base64
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_http import serving_at
from serving_small import QUESTIONS, StandIn, png, predictors

from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.serving.app import Service
from openblip.serving.chat_work import Chatting, Growing, Piece, Written
from openblip.serving.limits import Limits
from openblip.serving.local import LocalEngine
from openblip.tasks.families.blip2 import Blip2Adapter
from openblip.tasks.predictor import Predictor
from openblip.tasks.results import Caption

sys.path.append(str(Path(__file__).resolve().parents[1] / "blip2"))
import small_blip2

ASKED = "what is a dog"


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


def image_part(image: bytes) -> Any:
    uri = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return {"type": "image_url", "image_url": {"url": uri}}


def about(image: bytes, text: str | None = None) -> Any:
    """The messages that show an image, with a text."""
    parts = [image_part(image)]
    if text is not None:
        parts.insert(0, {"type": "text", "text": text})
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A small BLIP-2 over a language model."""
    folder = small_blip2.write_language(tmp_path_factory.mktemp("language"), "opt")
    made, words = small_blip2.model(language=folder), LanguageTokenizer.load(folder)
    return Predictor(Blip2Adapter(made, small_blip2.tokenizer(), {}, language_tokenizer=words))


@pytest.fixture(scope="module")
def address(language: Predictor) -> Iterator[str]:
    """A captioner, a model that answers, and a BLIP-2."""
    with serving_at(Service(LocalEngine({**predictors(), "blip2": language}, gather_ms=0))) as found:
        yield found


def test_stage_1_of_blip2_writes_without_a_text() -> None:
    stage1 = Predictor(Blip2Adapter(small_blip2.model(), small_blip2.tokenizer()))
    with serving_at(Service(LocalEngine({"stage1": stage1}, gather_ms=0))) as address:
        create = client_of(address).chat.completions.create
        reply = create(model="stage1", messages=about(png(1)))
        with pytest.raises(openai.BadRequestError, match="begins its captions with no text"):
            create(model="stage1", messages=about(png(1), "a red"))
    assert reply.choices[0].message.content == stage1.caption(png(1))[0][0].text


def test_models_are_listed(address: str) -> None:
    client = client_of(address)
    listed = client.models.list()
    assert listed.object == "list"
    assert [one.id for one in listed] == ["blip", "vqa", "blip2"]
    assert client.models.retrieve("vqa").id == "vqa"
    with pytest.raises(openai.NotFoundError, match="there is no such model"):
        client.models.retrieve("none/at-all")


def test_an_image_alone_gets_a_caption_and_a_text_begins_it(address: str) -> None:
    client, image = client_of(address), png(1)
    plain = client.chat.completions.create(model="blip", messages=about(image))
    begun = client.chat.completions.create(model="blip", messages=about(image, "a red"), max_tokens=7)
    predictor = predictors()["blip"]
    assert plain.choices[0].message.content == predictor.caption(image)[0][0].text
    config = DecodeConfig(num_beams=3, min_new_tokens=5, max_new_tokens=7)
    assert begun.choices[0].message.content == predictor.caption(image, config=config, prompt="a red")[0][0].text
    assert begun.choices[0].finish_reason == "length"
    assert plain.object == "chat.completion"


def test_a_question_gets_an_answer(address: str) -> None:
    image = png(2)
    reply = client_of(address).chat.completions.create(model="vqa", messages=about(image, QUESTIONS[0]))
    (answered,) = predictors()["vqa"].answer(image, [QUESTIONS[0]])
    assert reply.choices[0].message.content == answered[0].text
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 3
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_blip2_is_asked_greedily_or_by_beams(address: str, language: Predictor) -> None:
    client, image = client_of(address), png(3)
    for beams, more in ((1, {}), (3, {"beams": 3})):
        config = DecodeConfig(num_beams=beams, max_new_tokens=10, length_penalty=0.0)
        (answered,) = language.answer(image, [ASKED], config=config)
        reply = client.chat.completions.create(model="blip2", messages=about(image, ASKED), extra_body=more)
        assert reply.choices[0].message.content == answered[0].text
    own = client.chat.completions.create(
        model="blip2", messages=about(image, "a photo of"), extra_body={"prompt": "{}"}, max_tokens=8
    )
    greedy = DecodeConfig(max_new_tokens=8)
    assert own.choices[0].message.content == language.caption(image, config=greedy, prompt="a photo of")[0][0].text


def streamed(client: openai.OpenAI, **options: Any) -> tuple[list[str], list[Any]]:
    """The pieces of text, and all chunks."""
    chunks = list(client.chat.completions.create(stream=True, **options))
    return [one.choices[0].delta.content for one in chunks if one.choices and one.choices[0].delta.content], chunks


def test_blip2_streams_its_tokens(address: str) -> None:
    client = client_of(address)
    options = {"model": "blip2", "messages": about(png(3), ASKED), "max_tokens": 12, "temperature": 1.5, "seed": 2}
    plain = client.chat.completions.create(**options)
    pieces, chunks = streamed(client, stream_options={"include_usage": True}, **options)
    assert len(pieces) >= 4, pieces
    assert "".join(pieces) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {one.id for one in chunks} == {chunks[0].id}
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage


def test_a_beam_search_is_streamed_in_one_piece(address: str) -> None:
    client = client_of(address)
    plain = client.chat.completions.create(model="blip", messages=about(png(4)))
    pieces, _ = streamed(client, model="blip", messages=about(png(4)))
    assert pieces == [plain.choices[0].message.content]


def test_several_choices_are_streamed_side_by_side(address: str) -> None:
    client = client_of(address)
    options = {"model": "blip2", "messages": about(png(5)), "temperature": 1.2, "seed": 7, "n": 3}
    plain = client.chat.completions.create(**options)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [one.message.content for one in plain.choices]
    assert len(set(texts)) > 1


def test_the_asynchronous_client_streams_too(address: str) -> None:
    async def go() -> tuple[str, str | None]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            options: Any = {"model": "blip2", "messages": about(png(6), ASKED)}
            text = ""
            async for chunk in await client.chat.completions.create(stream=True, **options):
                text += chunk.choices[0].delta.content or ""
            whole = await client.chat.completions.create(**options)
            return text, whole.choices[0].message.content

    text, whole = asyncio.run(go())
    assert text == whole


def test_a_seed_gives_the_same_text_in_any_batch(language: Predictor) -> None:
    made = LocalEngine({**predictors(), "blip2": language}, gather_ms=300)
    cases = [(model, number) for model in ("blip", "vqa", "blip2") for number in range(4)]

    def options(model: str, number: int) -> Any:
        text = {"blip": None, "vqa": QUESTIONS[number], "blip2": ASKED}[model]
        shared = {"temperature": 1.3, "top_p": 0.95, "seed": 11, "n": 2, "max_tokens": 6}
        return {"model": model, "messages": about(png(number % 3), text), **shared}

    async def go(address: str) -> tuple[list[Any], list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            create = client.chat.completions.create
            together = await asyncio.gather(*(create(**options(*case)) for case in cases))
            batches = made.counts.batches
            alone = [await create(**options(*case)) for case in cases]
        assert batches < len(cases) / 2, "they were not computed together"
        return together, alone

    with serving_at(Service(made)) as address:
        together, alone = asyncio.run(go(address))
        other = client_of(address).chat.completions.create(**{**options("blip2", 0), "seed": 12})
        free = [
            client_of(address).chat.completions.create(**{**options("blip2", 0), "seed": None}) for _ in range(4)
        ]
    texts = [[one.message.content for one in reply.choices] for reply in together]
    assert texts == [[one.message.content for one in reply.choices] for reply in alone]
    assert [one.message.content for one in other.choices] != texts[8]
    assert len({one.choices[0].message.content for one in free}) > 1, "without a seed each draws anew"


# What is refused ---------------------------------------------------------------------------------------------


def user(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts)}]


TEXT = {"type": "text", "text": "two dogs"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"messages": user(TEXT)}, "there are 0 images and 1 texts"),
        ({"messages": user(image_part(png()), image_part(png(1)))}, "there are 2 images"),
        ({"messages": user(TEXT, TEXT, image_part(png()))}, "there are 1 images and 2 texts"),
        ({"messages": [{"role": "system", "content": "Be kind."}, *about(png())]}, "leave out system messages"),
        ({"messages": user({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})},
         "addresses are not opened"),
        ({"messages": user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})}, "not opened"),
        ({"messages": user({"type": "video_url"})}, "its content is a list of"),
        ({"messages": user({"type": "image_url", "image_url": "data:,"})}, "its content is a list of"),
        ({"messages": about(b"GIF89a")}, "the image cannot be used"),
        ({"messages": about(png(), "x" * 2001)}, "one has 2001 characters; the service takes 2000"),
        ({"messages": about(png()), "max_tokens": 129}, "max_tokens is 129; the service writes at most 128"),
        ({"messages": about(png()), "n": 17}, "the service gives at most 16"),
        ({"messages": about(png()), "n": 17, "temperature": 1}, "the service gives at most 16"),
        ({"messages": about(png()), "n": 0}, "n is 0"),
        ({"messages": about(png()), "max_tokens": 0}, "max_tokens is 0"),
        ({"messages": about(png()), "temperature": 300}, "temperature is 300.0; it lies between 0 and 2"),
        ({"messages": about(png()), "top_p": 2}, "top_p is 2.0; it lies between 0 and 1"),
        ({"messages": about(png()), "temperature": -1}, "temperature is -1"),
        ({"messages": about(png()), "top_p": 1.5, "temperature": 1}, "top_p is 1.5"),
        ({"messages": about(png()), "stop": ["a"]}, "stop: this service cannot do that"),
        ({"messages": about(png()), "logprobs": True}, "logprobs: this service cannot do that"),
        ({"messages": about(png()), "tools": []}, 'there is no field "tools"'),
        ({"messages": about(png()), "extra_body": {"beams": 2}, "temperature": 1}, "beams exclude temperature"),
        ({"messages": about(png()), "extra_body": {"prompt": "{}"}}, "prompt is how a question is asked"),
        ({"messages": about(png()), "model": "vqa"}, "the model vqa answers questions; write one"),
        ({"messages": about(png(), "dog " * 500), "model": "vqa"}, "tokens, and the model takes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_is_one_sentence(address: str, options: dict[str, Any], said: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(address).chat.completions.create(**{"model": "blip", "stream": stream, **options})
    error = caught.value
    assert said in error.message
    assert error.type == "invalid_request_error"
    assert set(error.body) == {"message", "type", "param", "code"}  # type: ignore[arg-type]


def test_a_model_that_is_not_there(address: str) -> None:
    with pytest.raises(openai.NotFoundError, match=r'no model "blib" \(did you mean "blip"\?\)'):
        client_of(address).chat.completions.create(model="blib", messages=about(png()))


def test_settings_without_effect_are_taken(address: str) -> None:
    client_of(address).chat.completions.create(
        model="blip", messages=about(png()), frequency_penalty=0, presence_penalty=0.0, user="me", store=False,
        response_format={"type": "text"}, logprobs=False, max_tokens=6, max_completion_tokens=6,
    )  # fmt: skip


def test_a_key_is_needed_where_there_are_keys() -> None:
    with serving_at(Service(StandIn(result=WRITTEN), keys=["right"])) as address:
        with pytest.raises(openai.AuthenticationError, match="an API key is needed") as caught:
            client_of(address, "wrong").chat.completions.create(model="one", messages=about(png()))
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client_of(address, "wrong").models.list()
        assert client_of(address, "right").chat.completions.create(model="one", messages=about(png())).choices


WRITTEN = Written((Caption("a red bus", -1.0, 4, True),), 5)


class Slow(StandIn):
    """Streams one piece and then holds."""

    async def stream(self, work: Chatting) -> Any:
        """As `Streams.stream`."""
        yield Piece(0, "a red")
        yield await self.run(work)


def until(found: Any) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 30
    while not found():
        assert time.monotonic() < end, "it has not come to be"
        time.sleep(0.005)


def test_a_full_queue_and_a_time_that_is_over() -> None:
    made = StandIn(result=WRITTEN, hold=True)
    with serving_at(Service(made, Limits(queue=1, seconds=1.0))) as address:
        failed: list[Exception] = []

        def first() -> None:
            try:
                client_of(address).chat.completions.create(model="one", messages=about(png()))
            except openai.APIStatusError as error:
                failed.append(error)

        thread = threading.Thread(target=first)
        thread.start()
        until(lambda: made.asked)
        with pytest.raises(openai.RateLimitError, match="too many requests") as caught:
            client_of(address).chat.completions.create(model="one", messages=about(png()))
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "rate_limit_exceeded"
        thread.join(timeout=30)
    (error,) = failed
    assert isinstance(error, openai.InternalServerError)
    assert error.status_code == 504
    assert "there was no answer within 1 seconds" in error.message
    assert made.dropped == 1


def test_a_stream_ends_when_the_time_is_over() -> None:
    made = Slow(result=WRITTEN, hold=True)
    with serving_at(Service(made, Limits(seconds=0.5))) as address:
        stream = client_of(address).chat.completions.create(model="one", messages=about(png()), stream=True)
        assert next(stream).choices[0].delta.content == "a red"
        with pytest.raises(openai.APIError, match=r"there was no answer within 0\.5 seconds"):
            next(stream)
        until(lambda: made.dropped)


def test_what_fails_in_the_midst_of_a_stream_is_told(caplog: pytest.LogCaptureFixture) -> None:
    made = Slow(result=ZeroDivisionError("x"))
    with serving_at(Service(made)) as address:
        stream = client_of(address).chat.completions.create(model="one", messages=about(png()), stream=True)
        next(stream)
        with pytest.raises(openai.APIError, match="the server has made a mistake"):
            next(stream)
    assert "ZeroDivisionError" in caplog.text


def test_an_engine_that_does_not_stream_gives_one_piece() -> None:
    with serving_at(Service(StandIn(result=WRITTEN))) as address:
        pieces, chunks = streamed(client_of(address), model="one", messages=about(png()))
    assert pieces == ["a red bus"]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_client_that_hangs_up_stops_the_language_model(language: Predictor) -> None:
    """Its steps wait, once there is a piece, until the service has seen that the client is gone."""
    made = LocalEngine({"blip2": language}, gather_ms=0)
    service = Service(made)
    steps, hung = [0, 0], threading.Event()

    def slow(*_: Any) -> None:
        steps[hung.is_set()] += 1
        if steps[0] == 8:
            until(hung.is_set)

    block = language.adapter.model.llm.hf.model.decoder.layers[0]
    handle = block.register_forward_pre_hook(slow)
    try:
        with serving_at(service) as address:
            stream = client_of(address).chat.completions.create(
                model="blip2", messages=about(png(8), ASKED), stream=True, max_tokens=40, temperature=2.0, seed=1
            )
            assert next(stream).choices[0].delta.content
            stream.close()
            until(lambda: service.requests.in_hand == 0)
            hung.set()
            until(lambda: made.counts.dropped == 1)
            assert steps[1] <= 1, "it has gone on"
    finally:
        handle.remove()


def test_texts_grow_without_being_taken_back() -> None:
    told: list[Piece] = []
    growing = Growing(told.append)
    for text in ("a", "a dog", "a dog '", "a dog's", "a dog's \ufffd", "a dog's é"):
        growing.grow(0, text)
    growing.grow(0, "a dog's")  # computed again
    growing.grow(0, "a dog's é")
    left = growing.rest(Written((Caption("a dog's é!", -1.0, 5, True),), 1))
    assert "".join(piece.text for piece in [*told, *left]) == "a dog's é!"
    assert [piece.text for piece in told][:2] == ["a", " dog"]
