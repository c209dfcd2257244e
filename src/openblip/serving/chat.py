"""The endpoint `/v1/chat/completions`: captions and answers in OpenAI's shape, whole or as server-sent events."""
# Without postponed annotations: FastAPI reads those of the endpoints, whose types are imported inside functions.

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any, Literal

from openblip.core.errors import UserError, nearest
from openblip.serving.body import Refused, parse, read_image, schema_of
from openblip.serving.chat_schemas import ChatReply, ChatRequest, Choice, Usage, WrittenMessage
from openblip.serving.chat_work import Chatting, Growing, Piece, Streams, Written
from openblip.serving.engine import Engine, ModelInfo
from openblip.serving.failures import FAILED, openai_failure
from openblip.serving.performing import Performing, hung_up, refusing

__all__ = ["add_chat"]

_LOG = logging.getLogger(__name__)
_SHAPE = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
        }
    },
}

_MESSAGES = (
    'messages: a message is {"role": "user", "content": ...}; its content is a list of '
    '{"type": "text", "text": ...} and {"type": "image_url", "image_url": {"url": ...}}'
)
"""what is said of a message in another form"""


async def _parsed(body: bytes, headers: Mapping[str, str]) -> ChatRequest:
    try:
        return await parse(body, headers, ChatRequest)
    except UserError as error:
        if not str(error).startswith("messages."):
            raise
        raise UserError(_MESSAGES) from error


def add_chat(service: Performing, app: Any) -> None:
    """Give an application the endpoint."""
    from fastapi import Request

    async def chat(request: Request) -> Any:
        body = await service.read(request)
        with refusing(400):
            asked = await _parsed(body, request.headers)
            model = _choose(service.engine, asked)
            work = asked.work(model, service.limits)
            image = await service.within_time(request, read_image(asked.parts()[0], service.opener))
            work = replace(work, image=image)
            if not asked.stream:
                return _whole(model.id, await service.within_time(request, service.engine.run(work)))
            pieces = _pieces(service.engine, work)
            first = await service.within_time(request, anext(pieces))
        return _streamed(service, model.id, first, pieces, asked.includes_usage)

    failures = {"content": {"application/json": {"schema": _SHAPE}}, "description": "Refused"}
    app.add_api_route(
        "/v1/chat/completions",
        chat,
        methods=["POST"],
        name="chat",
        summary="Chat about an image, in OpenAI's shape",
        response_model=ChatReply,
        responses=dict.fromkeys((400, 401, 404, 408, 413, 429, 503, 504), failures),
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema_of(ChatRequest)}}}
        },
    )


def _choose(engine: Engine, asked: ChatRequest) -> ModelInfo:
    """The model that is named, or the first that does what is requested: a text is a question where one answers."""
    models = engine.models
    if asked.model is not None:
        if asked.model not in models:
            raise Refused(404, f'there is no model "{asked.model[:60]}"{nearest(asked.model, models)}')
        if not {"caption", "answer"} & set(models[asked.model].can):
            raise UserError(f"the model {asked.model} cannot chat; it can {', '.join(models[asked.model].can)}")
        return models[asked.model]
    wanted = ("caption", "answer") if asked.parts()[1] is None else ("answer", "caption")
    for what in wanted:
        for model in models.values():
            if what in model.can:
                return model
    raise Refused(404, "no model of this service can chat")


async def _pieces(engine: Engine, work: Chatting) -> AsyncGenerator[Piece | Written, None]:
    """What the engine streams; of one that does not, the whole texts."""
    if isinstance(engine, Streams):
        async with aclosing(engine.stream(work)) as pieces:
            async for piece in pieces:
                yield piece
        return
    written = await engine.run(work)
    for piece in Growing(lambda _: None).rest(written):
        yield piece
    yield written


def _reason(complete: bool) -> Literal["stop", "length"]:
    return "stop" if complete else "length"


def _usage(written: Written) -> Usage:
    completion = sum(one.num_tokens for one in written.texts)
    return Usage(written.prompt_tokens, completion, written.prompt_tokens + completion)


def _whole(model: str, written: Written) -> ChatReply:
    choices = [
        Choice(number, WrittenMessage(one.text), _reason(one.complete)) for number, one in enumerate(written.texts)
    ]
    return ChatReply(_new_id(), model, int(time.time()), choices, _usage(written))


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def _streamed(
    service: Performing,
    model: str,
    first: Piece | Written,
    rest: AsyncGenerator[Piece | Written, None],
    usage: bool,
) -> Any:
    """A response of server-sent events, which ends early when the client goes or the time is over."""
    from starlette.responses import Response

    base = {"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

    def chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return _event({**base, "choices": choices, **more})

    def choice(number: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}

    begun: set[int] = set()

    def events(piece: Piece | Written) -> Iterator[bytes]:
        if isinstance(piece, Piece):
            role = {} if piece.number in begun else {"role": "assistant"}
            begun.add(piece.number)
            yield chunk([choice(piece.number, {**role, "content": piece.text})])
            return
        for number, one in enumerate(piece.texts):
            yield chunk([choice(number, {}, _reason(one.complete))])
        if usage:
            yield chunk([], usage=asdict(_usage(piece)))

    class Events(Response):
        media_type = "text/event-stream"

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def put(data: bytes, more: bool = True) -> None:
                await send({"type": "http.response.body", "body": data, "more_body": more})

            headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
            gone = asyncio.ensure_future(hung_up(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                for event in events(first):
                    await put(event)
                while True:
                    coming = asyncio.ensure_future(anext(rest, None))
                    left = service.seconds_left(scope)
                    await asyncio.wait([coming, gone], timeout=left, return_when=asyncio.FIRST_COMPLETED)
                    if gone.done() or not coming.done():
                        coming.cancel()
                        await asyncio.wait([coming])
                    if gone.done():
                        return
                    if coming.cancelled():
                        message = f"there was no answer within {service.limits.seconds:g} seconds; it ends here"
                        await put(_event(openai_failure(504, message)))
                        break
                    if (piece := _result(coming)) is None:
                        break
                    if isinstance(piece, dict):
                        await put(_event(piece))
                        break
                    for event in events(piece):
                        await put(event)
                await put(b"data: [DONE]\n\n", more=False)
            finally:
                gone.cancel()
                await rest.aclose()

    return Events(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})


def _result(coming: asyncio.Future[Any]) -> Any:
    """What has come: a piece, None at the end, or a failure in OpenAI's shape."""
    try:
        return coming.result()
    except UserError as error:
        return openai_failure(400, str(error))
    except Exception:  # noqa: BLE001  the answer has begun: it cannot get another status
        _LOG.exception("a stream has failed")
        return openai_failure(500, FAILED)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
