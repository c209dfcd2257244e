"""The endpoint `/v1/hf/{model}`: three tasks in Hugging Face's shapes, for `huggingface_hub.InferenceClient`.

The task follows from the body, as the client sends it: the bytes of an image, or JSON with `inputs`, are
image-to-text; a question beside the image is visual-question-answering; `candidate_labels` are
zero-shot-image-classification.
"""
# Without postponed annotations: FastAPI reads those of the endpoints, whose types are imported inside functions.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openblip.core.errors import UserError
from openblip.core.text import rounded
from openblip.serving.body import Opener, Refused, checked, from_json, read_image, schema_of
from openblip.serving.classify import ClassifyRequest
from openblip.serving.performing import Performing, refusing
from openblip.serving.schemas import AnswerRequest, CaptionRequest, Failure, Request

__all__ = ["HfAnswer", "HfBody", "HfLabel", "HfText", "add_hf"]

_BINARY = ("", "application/octet-stream")
"""types of a body that is an image, besides image/..."""
_TEMPLATE = "This is a photo of {}."
"""the client's way to leave it out: that of transformers' pipeline"""


@dataclass(frozen=True, kw_only=True)
class HfQuestion:
    """An image with a question about it."""

    image: str
    """base64, or a data URI"""
    question: str


@dataclass(frozen=True, kw_only=True)
class HfBody:
    """A task of Hugging Face."""

    inputs: str | HfQuestion
    """an image as base64 or a data URI, or with a question"""
    question: str | None = None
    """visual question answering as the client sends it, beside `inputs`"""
    image: str | None = None
    """the client sends the image here as well; it is the one in `inputs`"""
    parameters: Mapping[str, Any] | None = None
    """image-to-text: max_new_tokens, and in generation_parameters those of transformers that are known here;
    visual-question-answering: top_k; zero-shot-image-classification: candidate_labels, hypothesis_template"""
    options: Mapping[str, Any] | None = None
    """of the client's own server; without effect"""


@dataclass(frozen=True)
class HfText:
    """What image-to-text gives a list of."""

    generated_text: str


@dataclass(frozen=True)
class HfAnswer:
    """What visual-question-answering gives a list of, the likeliest first."""

    score: float
    """that the model writes this answer"""
    answer: str


@dataclass(frozen=True)
class HfLabel:
    """What zero-shot-image-classification gives a list of, the likeliest first."""

    label: str
    score: float
    """probability among the labels"""


def add_hf(service: Performing, app: Any) -> None:
    """Give an application the endpoint."""
    from fastapi import Request as HttpRequest

    async def perform(model: str, request: HttpRequest) -> Any:
        body = await service.read(request)
        with refusing():
            asked = await service.within_time(request, _asked(model, body, request.headers, service.opener))
            name = type(asked).__name__.removesuffix("Request").lower()
            work = asked.work(service.choose(asked, name), service.limits)
            found = await service.within_time(request, service.engine.run(work))
        if isinstance(asked, ClassifyRequest):
            return [HfLabel(one.name, rounded(one.probability)) for one in found]
        if isinstance(asked, AnswerRequest):
            return [HfAnswer(rounded(one.probability), one.text) for one in found[0].answers]
        return [HfText(one.text) for one in found]

    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": schema_of(HfBody)}, "image/*": binary}
    app.add_api_route(
        "/v1/hf/{model:path}",
        perform,
        methods=["POST"],
        name="hf",
        summary="Perform a task in Hugging Face's shape",
        response_model=list[HfLabel] | list[HfAnswer] | list[HfText],
        responses={status: {"model": Failure} for status in (401, 408, 413, 415, 422, 429, 503, 504)},
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )


async def _asked(model: str, body: bytes, headers: Mapping[str, str], opener: Opener | None) -> Request:
    """The request of our own that a body stands for."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _BINARY or kind.startswith("image/"):
        return CaptionRequest(model=model, image=body)
    if kind != "application/json":
        raise Refused(415, "the body must be an image, or application/json with inputs")
    sent = checked(from_json(body), HfBody)
    given = dict(sent.parameters or {})
    both = sent.inputs if isinstance(sent.inputs, HfQuestion) else None
    question = sent.question if both is None else both.question
    image = await read_image(sent.inputs if isinstance(sent.inputs, str) else sent.inputs.image, opener)
    fields: dict[str, Any] = {"model": model, "image": image}
    kinds: type[Request]
    if question is not None:
        kinds, more = AnswerRequest, {"questions": [question], "count": given.pop("top_k", None)}
    elif "candidate_labels" in given:
        template = given.pop("hypothesis_template", None) or _TEMPLATE
        more = {"classes": given.pop("candidate_labels"), "templates": [template]}
        kinds = ClassifyRequest
    else:
        kinds, more = CaptionRequest, _generation(given)
    if given:
        raise UserError(f'parameters: "{next(iter(given))[:40]}" is not known here; leave it out')
    return checked({**fields, **{name: value for name, value in more.items() if value is not None}}, kinds)


def _generation(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of a caption's request by transformers' names, which are taken out of `given`."""
    more = given.pop("generation_parameters", None) or {}
    if not isinstance(more, Mapping):
        raise UserError("parameters: generation_parameters must be an object")
    given.update(more)
    drawn = given.pop("do_sample", None)
    fields = {
        "max_tokens": given.pop("max_new_tokens", None),
        "min_tokens": given.pop("min_new_tokens", None),
        "beams": given.pop("num_beams", None),
        "top_p": given.pop("top_p", None),
        "temperature": given.pop("temperature", None),
    }
    if drawn and fields["top_p"] is None:
        fields["top_p"] = 1.0
    return fields
