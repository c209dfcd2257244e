"""The work of a chat: a caption of an image or an answer about it, whole or as it grows.

Shapes: S texts, those of one piece of work together.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from openblip.generation.config import DecodeConfig
from openblip.generation.types import Watch
from openblip.serving.engine import Work
from openblip.tasks.results import Caption

__all__ = ["Chatting", "Growing", "Piece", "Streams", "Written", "count_tokens", "watching"]


@dataclass(frozen=True, kw_only=True)
class Chatting(Work):
    """Gives a `Written`."""

    config: DecodeConfig
    question: str | None = None
    """None writes a caption"""
    prompt: str | None = None
    """how the caption begins, or how BLIP-2 is asked, {} in place of the question; None is the model's"""

    @property
    def kind(self) -> tuple[Any, ...]:
        """Captions may begin differently; questions of one batch are asked alike."""
        asks = self.question is not None
        return (*super().kind, self.config, asks, self.prompt if asks else None)


@dataclass(frozen=True, slots=True)
class Written:
    """Texts of a chat."""

    texts: tuple[Caption, ...]
    prompt_tokens: int
    """of the text that was read; the image's are not counted"""


class Piece(NamedTuple):
    """What has come to a text."""

    number: int
    """of the text, from 0"""
    text: str


@runtime_checkable
class Streams(Protocol):
    """An engine that gives texts while they are written."""

    def stream(self, work: Chatting) -> AsyncGenerator[Piece | Written, None]:
        """Pieces as they come, then the whole. Closing the iterator drops the work.

        Raises:
            UserError, BrokenSample: as `Engine.run`.
        """
        ...


class Growing:
    """Tells what has come to texts that are decoded anew after each token.

    A text lags one token behind: the next token may change how the last one is written ("dog '" becomes "dog's").
    Used by one thread at a time; a batch that is computed again repeats nothing.

    Args:
        tell: takes each piece.
    """

    def __init__(self, tell: Callable[[Piece], Any]) -> None:
        self._tell = tell
        self._last: dict[int, str] = {}
        self._told: dict[int, str] = {}

    def grow(self, number: int, text: str) -> None:
        """Take the whole text as it is now."""
        text = text.rstrip("\ufffd")  # half of a character
        settled = _common_start(self._last.get(number, ""), text)
        self._last[number] = text
        told = self._told.get(number, "")
        if len(settled) > len(told) and settled.startswith(told):
            self._told[number] = settled
            self._tell(Piece(number, settled[len(told) :]))

    def rest(self, written: Written) -> list[Piece]:
        """What is left to tell of the finished texts."""
        left = []
        for number, one in enumerate(written.texts):
            told = self._told.get(number, "")
            if len(one.text) > len(told) and one.text.startswith(told):
                left.append(Piece(number, one.text[len(told) :]))
        return left


def watching(growing: Sequence[Growing | None], each: int, decode: Callable[[list[int]], str]) -> Watch:
    """Hands the texts of a batch, `each` of every piece of work, to those that want them while they grow."""
    ids: list[list[int]] = [[] for _ in range(len(growing) * each)]

    def watch(rows: Tensor, tokens: Tensor) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            ids[row].append(token)
            if (own := growing[row // each]) is not None:
                own.grow(row % each, decode(ids[row]))

    return watch


def _common_start(left: str, right: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    return min(left, right, key=len) if length is None else left[:length]


def count_tokens(tokenizer: Any, text: str) -> int:
    """How many tokens a text has to a model's tokenizer, its own marks included."""
    if hasattr(tokenizer, "hf"):  # a language model's
        return int(tokenizer.prompts([text], side="left").attention_mask.sum())
    return int(tokenizer.encode([text], end=False).attention_mask.sum())
