"""Requests and answers of the service, as plain dataclasses; pydantic checks requests against them.

An image is encoded bytes: a part of a form, or in JSON base64 or a data URI. In a form, a list is a field that
repeats.

Shapes: C texts, E joint width, Q queries, h x w patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from openblip.core.errors import UserError
from openblip.generation.config import DecodeConfig
from openblip.serving.engine import (
    Answering,
    Captioning,
    Embedding,
    Explaining,
    Matching,
    ModelInfo,
    Searching,
    Work,
)
from openblip.serving.limits import Limits
from openblip.tasks.results import Answered, Caption, Match

__all__ = [
    "AnswerReply",
    "AnswerRequest",
    "CaptionReply",
    "CaptionRequest",
    "EmbedReply",
    "EmbedRequest",
    "Example",
    "ExplainReply",
    "ExplainRequest",
    "Failure",
    "FoundImage",
    "ListedModel",
    "MatchReply",
    "MatchRequest",
    "ModelsReply",
    "Request",
    "SearchReply",
    "SearchRequest",
    "ServedModelInfo",
    "WordWeights",
    "check_texts",
]


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """What all requests share."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model: str | None = None
    """id of a model; left out, the first that serves the endpoint"""

    @property
    def needs(self) -> str:
        """What a model that is chosen should be able to do besides, where there is one; "" for nothing."""
        return ""

    @abstractmethod
    def work(self, model: ModelInfo, limits: Limits) -> Work:
        """The work for the engine.

        Raises:
            UserError: the request goes beyond a limit, or its settings exclude each other.
        """


@dataclass(frozen=True, kw_only=True)
class _Generating(Request):
    image: bytes
    """file, base64 or data URI"""
    beams: int | None = None
    """texts that the beam search keeps; 1 is greedy; left out, the papers'"""
    top_p: float | None = None
    """nucleus sampling in place of beam search, among the likeliest tokens that together reach this probability"""
    temperature: float = 1.0
    """of sampling"""
    seed: int = 0
    """of sampling: the same seed and image give the same text"""
    count: int = 1
    """texts to give, the best first"""
    min_tokens: int | None = None
    max_tokens: int | None = None
    length_penalty: float | None = None
    """of the beam search; left out, the papers'"""
    repetition_penalty: float = 1.0
    prompt: str | None = None
    """how a caption begins, or how BLIP-2 is asked a question; left out, as the model was trained"""

    def decoding(self, usual: DecodeConfig, limits: Limits) -> DecodeConfig:
        """How texts are generated.

        Raises:
            UserError: see `Request.work`.
        """
        if self.beams is not None and self.beams < 1:
            raise UserError(f"beams is {self.beams}; it must be at least 1")
        beams = max(usual.num_beams if self.beams is None else self.beams, self.count)
        if beams > limits.sequences:
            raise UserError(f"{beams} beams or texts are requested; the service gives at most {limits.sequences}")
        longest = usual.max_new_tokens if self.max_tokens is None else self.max_tokens
        if longest > limits.tokens:
            raise UserError(f"max_tokens is {longest}; the service writes at most {limits.tokens}")
        if self.top_p is not None and self.beams is not None:
            raise UserError("beams and top_p exclude each other; leave one out")
        if self.top_p is None and self.temperature != 1.0:
            raise UserError("a temperature is for texts drawn at random; give top_p too")
        drawn = {"sample": True, "top_p": self.top_p, "temperature": self.temperature, "seed": self.seed}
        penalty = usual.length_penalty if self.length_penalty is None else self.length_penalty
        return DecodeConfig(
            **(drawn if self.top_p is not None else {"num_beams": beams, "length_penalty": penalty}),
            num_sequences=self.count,
            max_new_tokens=longest,
            min_new_tokens=min(usual.min_new_tokens, longest) if self.min_tokens is None else self.min_tokens,
            repetition_penalty=self.repetition_penalty,
        )


@dataclass(frozen=True, kw_only=True)
class CaptionRequest(_Generating):
    """Write captions of an image."""

    def work(self, model: ModelInfo, limits: Limits) -> Captioning:
        """As `Request.work`."""
        check_texts("prompt", [self.prompt or ""], limits, empty=True)
        config = self.decoding(model.captioning, limits)
        return Captioning(model=model.id, image=self.image, config=config, prompt=self.prompt)


@dataclass(frozen=True, kw_only=True)
class AnswerRequest(_Generating):
    """Answer questions about an image."""

    questions: tuple[str, ...]
    answers: tuple[str, ...] | None = None
    """to choose from, by their likelihood; left out, answers are written freely"""

    def work(self, model: ModelInfo, limits: Limits) -> Answering:
        """As `Request.work`."""
        check_texts("questions", self.questions, limits)
        if self.answers is not None:
            check_texts("answers", self.answers, limits)
        check_texts("prompt", [self.prompt or ""], limits, empty=True)
        return Answering(
            model=model.id,
            image=self.image,
            questions=self.questions,
            candidates=self.answers,
            config=self.decoding(model.answering, limits),
            prompt=self.prompt,
        )


@dataclass(frozen=True, kw_only=True)
class MatchRequest(Request):
    """Say how well texts fit an image."""

    image: bytes
    """file, base64 or data URI"""
    texts: tuple[str, ...]

    def work(self, model: ModelInfo, limits: Limits) -> Matching:
        """As `Request.work`."""
        check_texts("texts", self.texts, limits)
        return Matching(model=model.id, image=self.image, texts=self.texts)


@dataclass(frozen=True, kw_only=True)
class EmbedRequest(Request):
    """Embed an image, texts, or both in the space where their cosines tell how well they fit."""

    image: bytes | None = None
    """file, base64 or data URI"""
    texts: tuple[str, ...] = ()

    def work(self, model: ModelInfo, limits: Limits) -> Embedding:
        """As `Request.work`."""
        if self.image is None or self.texts:
            check_texts("texts", self.texts, limits)
        return Embedding(model=model.id, image=self.image, texts=self.texts)


@dataclass(frozen=True, kw_only=True)
class ExplainRequest(Request):
    """Say where the model looks in an image for each word of a text."""

    image: bytes
    """file, base64 or data URI"""
    text: str | None = None
    """left out, the caption that the model writes"""
    by: Literal["caption", "match"] | None = None
    """what makes the text match, or what lets it be written; left out, match where the model can"""
    layer: int | None = None
    """of the text transformer, from 0; left out, two thirds up"""
    format: Literal["json", "png"] = "json"
    """the weights as numbers, or drawn over the image"""
    word: int | None = None
    """for "png": which word, from 0; left out, the average over all"""

    @property
    def needs(self) -> str:
        """A text is explained by what makes it match, where a model can."""
        return self.by or ("caption" if self.text is None else "match")

    def work(self, model: ModelInfo, limits: Limits) -> Explaining:
        """As `Request.work`."""
        if self.text is not None:
            check_texts("text", [self.text], limits)
        return Explaining(model=model.id, image=self.image, text=self.text, by=self.by, layer=self.layer)


@dataclass(frozen=True, kw_only=True)
class SearchRequest(Request):
    """Find images of the index by a text or by an image."""

    text: str | None = None
    image: bytes | None = None
    """file, base64 or data URI"""
    count: int = 12
    rerank: int = 32
    """candidates that ITM reads; 0 orders by ITC alone"""

    def work(self, model: ModelInfo, limits: Limits) -> Searching:
        """As `Request.work`."""
        if (self.text is None) == (self.image is None):
            raise UserError("search for a text or for an image, one of them")
        if self.text is not None:
            check_texts("text", [self.text], limits)
        if not (1 <= self.count <= limits.texts and 0 <= self.rerank <= limits.texts):
            raise UserError(f"count is 1 to {limits.texts}, and rerank 0 to {limits.texts}")
        return Searching(model=model.id, text=self.text, image=self.image, count=self.count, rerank=self.rerank)


def check_texts(name: str, texts: Sequence[str], limits: Limits, *, empty: bool = False) -> None:
    """Refuse texts beyond the limits.

    Args:
        name: of the field.
        empty: accept texts without a character.

    Raises:
        UserError: names the field and the limit.
    """
    if not texts:
        raise UserError(f"{name}: give at least one")
    if len(texts) > limits.texts:
        raise UserError(f"{name}: there are {len(texts)}; the service takes at most {limits.texts}")
    for text in texts:
        if not text.strip() and not empty:
            raise UserError(f"{name}: one is empty")
        if len(text) > limits.characters:
            raise UserError(f"{name}: one has {len(text)} characters; the service takes {limits.characters}")


@dataclass(frozen=True)
class Failure:
    """What a refused request gets."""

    error: str
    """one sentence"""


@dataclass(frozen=True)
class CaptionReply:
    """Captions, the best first."""

    model: str
    captions: list[Caption]


@dataclass(frozen=True)
class AnswerReply:
    """For each question its answers, the best first."""

    model: str
    questions: list[Answered]


@dataclass(frozen=True)
class MatchReply:
    """For each text how well it fits, in the order of the request."""

    model: str
    matches: list[Match]


@dataclass(frozen=True)
class EmbedReply:
    """Vectors of length 1."""

    model: str
    image: list[float] | list[list[float]] | None
    """[E]; BLIP-2 gives [Q, E], and the largest cosine counts; None without an image"""
    texts: list[list[float]]
    """[C, E], in the order of the request; empty without texts"""


@dataclass(frozen=True)
class WordWeights:
    """Where the model looked for a word."""

    word: str
    peak: tuple[float, float]
    """centre (x, y) of the strongest patch, in shares of the image's sides"""
    weights: list[list[float]]
    """[h, w], rows of patches from the top, not negative, not scaled: words of one text can be compared"""


@dataclass(frozen=True)
class ExplainReply:
    """Where the model looked for each word."""

    model: str
    text: str
    by: str
    words: list[WordWeights]


@dataclass(frozen=True)
class FoundImage:
    """An image of the index."""

    id: str
    """of this server's run; no path"""
    score: float
    """ITC similarity, and where ITM read the image its logit of a match besides; what ITM read comes first"""
    itm: float | None
    """probability that it matches, where ITM read it"""
    caption: str | None
    thumbnail: str
    """address on this server"""


@dataclass(frozen=True)
class SearchReply:
    """Images, the best first."""

    hits: list[FoundImage]


@dataclass(frozen=True)
class ServedModelInfo:
    """A model that is served."""

    id: str
    family: str
    can: list[str]
    """names of endpoints"""
    image_size: tuple[int, int]
    """height and width that it reads; any image is resized"""


@dataclass(frozen=True)
class ListedModel:
    """A model as OpenAI lists it."""

    id: str
    created: int
    """when the service was started, in seconds since 1970"""
    object: Literal["model"] = "model"
    owned_by: str = "openblip"


@dataclass(frozen=True)
class Example:
    """An image to try, drawn by the server, with texts about it."""

    image: str
    """address on this server"""
    question: str
    texts: list[str]
    """the first is true"""


@dataclass(frozen=True)
class ModelsReply:
    """What is served."""

    models: list[ServedModelInfo]
    search: bool
    """whether there is an image index"""
    examples: list[Example]
    limits: dict[str, float]
    """of `Limits`, by their names"""
    data: list[ListedModel]
    """the models as OpenAI lists them"""
    object: Literal["list"] = "list"
    capfilt: bool = False
    """whether there are decisions of CapFilt to browse"""
