"""Requests and answers of `/v1/chat/completions`, as OpenAI's clients send and read them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openblip.core.errors import UserError
from openblip.generation.config import DecodeConfig
from openblip.serving.chat_work import Chatting
from openblip.serving.engine import ModelInfo
from openblip.serving.limits import Limits
from openblip.serving.schemas import Request, check_texts

__all__ = ["ChatReply", "ChatRequest", "Choice", "Message", "Part", "Usage", "WrittenMessage"]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "stop": (None, [], ""),
    "logprobs": (None, False),
    "response_format": (None, {"type": "text"}),
}
"""settings that clients send without need, and the values that change nothing"""
_MOST = {"temperature": 2, "top_p": 1}
"""of settings that begin at 0, as OpenAI has them"""


@dataclass(frozen=True, kw_only=True)
class ImageAddress:
    """An image: a data URI, or an address of a domain that the service opens."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    """has no effect: any image is read at the model's size"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A text or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageAddress | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """A message of the chat."""

    role: Literal["user", "assistant", "system", "developer", "tool"]
    content: str | tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Request):
    """Write a caption of an image, or answer a text about it, in OpenAI's shape."""

    messages: tuple[Message, ...]
    """one of the user, with one image and at most one text: a question where the model answers, else how the
    caption begins"""
    stream: bool | None = False
    stream_options: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    """as max_tokens; left out, the papers'"""
    temperature: float | None = None
    """above 0 draws tokens at random"""
    top_p: float | None = None
    """below 1 draws tokens at random, among the likeliest that together reach it"""
    seed: int | None = None
    """of drawing: the same seed, image and text give the same answer; left out, another one each time"""
    n: int | None = 1
    """choices"""
    beams: int | None = None
    """not OpenAI's: texts that a beam search keeps; left out, 1 (greedy) for a language model, else the papers'"""
    prompt: str | None = None
    """not OpenAI's: how BLIP-2 is asked, {} in place of the text; "{}" is the text alone"""
    user: str | None = None
    metadata: Mapping[str, Any] | None = None
    store: bool | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: str | tuple[str, ...] | None = None
    logprobs: bool | None = None
    response_format: Mapping[str, Any] | None = None

    def parts(self) -> tuple[str, str | None]:
        """The image's address or data URI, and the text.

        Raises:
            UserError: there is not one image in one message of the user.
        """
        if len(self.messages) != 1 or self.messages[0].role != "user":
            raise UserError(
                "messages: the models read one message, of the user; leave out system messages and earlier turns"
            )
        content = self.messages[0].content
        parts = (Part(type="text", text=content),) if isinstance(content, str) else content
        images = [part.image_url.url for part in parts if part.type == "image_url" and part.image_url]
        texts = [part.text for part in parts if part.type == "text" and part.text and part.text.strip()]
        if len(images) != 1 or len(texts) > 1:
            raise UserError(
                f"messages: there are {len(images)} images and {len(texts)} texts; send one image (a part of type "
                "image_url) and at most one text"
            )
        return images[0], texts[0] if texts else None

    def check(self) -> None:
        """Refuse settings that would have an effect here that they have not.

        Raises:
            UserError: names the setting.
        """
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value is not None and not 0 <= value <= most:
                raise UserError(f"{name} is {value}; it lies between 0 and {most}")
        for name, values in _NEUTRAL.items():
            value = getattr(self, name)
            if (list(value) if isinstance(value, tuple) else value) not in values:
                raise UserError(f"{name}: this service cannot do that; leave it out")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise UserError("max_tokens and max_completion_tokens differ; leave one out")

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool((self.stream_options or {}).get("include_usage"))

    def work(self, model: ModelInfo, limits: Limits) -> Chatting:
        """As `Request.work`; without the image, whose bytes are put in place of it."""
        _, text = self.parts()
        check_texts("messages", [text or ""], limits, empty=True)
        check_texts("prompt", [self.prompt or ""], limits, empty=True)
        asks = text is not None and "answer" in model.can
        if not asks and "caption" not in model.can:
            raise UserError(f"the model {model.id} answers questions; write one beside the image")
        if self.prompt is not None and not asks:
            raise UserError("prompt is how a question is asked; leave it out")
        return Chatting(
            model=model.id,
            config=self.decoding(model.answering if asks else model.captioning, model.language, limits),
            question=text if asks else None,
            prompt=self.prompt if asks else text,
        )

    def decoding(self, usual: DecodeConfig, language: bool, limits: Limits) -> DecodeConfig:
        """How texts are generated.

        Args:
            language: whether a language model writes.

        Raises:
            UserError: see `Request.work`.
        """
        self.check()
        count = 1 if self.n is None else self.n
        if count < 1:
            raise UserError(f"n is {count}; it must be at least 1")
        chosen = [one for one in (self.max_tokens, self.max_completion_tokens) if one is not None]
        longest = chosen[0] if chosen else min(usual.max_new_tokens, limits.tokens)
        if longest < 1:
            raise UserError(f"max_tokens is {longest}; it must be at least 1")
        if longest > limits.tokens:
            raise UserError(f"max_tokens is {longest}; the service writes at most {limits.tokens}")
        shared: dict[str, Any] = {
            "num_sequences": count,
            "max_new_tokens": longest,
            "min_new_tokens": min(usual.min_new_tokens, longest),
        }
        warm = self.temperature is None or self.temperature != 0
        if warm and (self.temperature is not None or (self.top_p is not None and self.top_p < 1)):
            if self.beams is not None:
                raise UserError("beams exclude temperature and top_p; leave one out")
            if count > limits.sequences:
                raise UserError(f"n is {count}; the service gives at most {limits.sequences}")
            return DecodeConfig(
                sample=True,
                top_p=1.0 if self.top_p is None else self.top_p,
                temperature=1.0 if self.temperature is None else self.temperature,
                seed=secrets.randbits(31) if self.seed is None else self.seed,
                **shared,
            )
        if self.beams is not None and self.beams < 1:
            raise UserError(f"beams is {self.beams}; it must be at least 1")
        beams = max((1 if language else usual.num_beams) if self.beams is None else self.beams, count)
        if beams > limits.sequences:
            raise UserError(f"{beams} beams or texts are requested; the service gives at most {limits.sequences}")
        return DecodeConfig(num_beams=beams, length_penalty=usual.length_penalty, **shared)


@dataclass(frozen=True)
class WrittenMessage:
    """What the model has written."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


@dataclass(frozen=True)
class Choice:
    """A text, the best first."""

    index: int
    message: WrittenMessage
    finish_reason: Literal["stop", "length"]
    """"length": it was cut at max_tokens"""
    logprobs: None = None


@dataclass(frozen=True)
class Usage:
    """Counts of tokens; those of the image are not among them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class ChatReply:
    """What OpenAI's clients call a chat completion."""

    id: str
    model: str
    created: int
    choices: list[Choice] = field(default_factory=list)
    usage: Usage | None = None
    object: Literal["chat.completion"] = "chat.completion"
