"""The captioner and the filter: opened, checked for what they can do, fingerprinted, shared where they are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.checkpoints.store import open_model, unique_state
from openblip.core.config import to_dict
from openblip.core.errors import UserError
from openblip.core.fingerprint import fingerprint
from openblip.models.layers import ImageMemory
from openblip.tasks.protocols import Adapter
from openblip.tasks.registry import adapt

__all__ = ["Models", "Part", "open_models"]


@dataclass
class Part:
    """A model with what is needed to use it."""

    adapter: Adapter
    fingerprint: str

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Pixels that the vision tower reads."""
        return self.adapter.image_size

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Texts as the model saw them in training."""
        return [self.adapter.clean(text) for text in texts]


@dataclass
class Models:
    """Who writes and who judges."""

    captioner: Part | None
    """None: nothing is written, texts from the web are judged alone"""
    filter: Part | None
    """None: nothing is judged"""
    one_vision: bool
    """both see with the same weights: an image is encoded once"""
    one_model: bool
    """captioner and filter are parts of one tied model: its memory serves both"""

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Models:
        """Move both to a device, in a dtype, ready to be used."""
        for part in (self.captioner, self.filter):
            if part is not None:
                part.adapter.move(torch.device(device), dtype)
        return self

    @torch.no_grad()
    def look(
        self, pixels: dict[int | tuple[int, int], Tensor]
    ) -> tuple[ImageMemory | None, tuple[Tensor, ImageMemory] | None]:
        """Encode images, each tower once.

        Args:
            pixels: uint8 [B, 3, H, W] for each size that a tower reads.

        Returns:
            the captioner's memory; the filter's image_embeds [B, N, Dv] and memory. None for a model that is not
            there.
        """
        judged, features = None, None
        if self.filter is not None:
            judge = self.filter.adapter
            features = judge.tower_features(pixels[self.filter.image_size])
            embeds = judge.embeds_of(features)
            judged = embeds, judge.remember(embeds)
        if self.captioner is None:
            return None, judged
        if self.one_model and judged is not None:
            return judged[1], judged
        writer = self.captioner.adapter
        if features is None or not self.one_vision:
            features = writer.tower_features(pixels[self.captioner.image_size])
        return writer.remember(writer.embeds_of(features)), judged


def open_models(
    captioner: str,
    filter: str,
    *,
    image_size: int | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
) -> Models:
    """Open the two models, "" for none; the same path is opened once.

    Args:
        tokenizer: of a model that brings none.
        dtype: in which a language model of LAVIS or transformers is read at once.

    Raises:
        UserError: one cannot be opened, or cannot do what it is needed for.
    """
    judge: Part | None = None
    if filter:
        judge = _open(filter, image_size, tokenizer, dtype)
        _require(filter, "--filter", judge, "match")
    writer: Part | None = None
    if captioner:
        writer = judge if captioner == filter else _open(captioner, image_size, tokenizer, dtype)
        assert writer is not None, "equal paths, and one is not empty"
        _require(captioner, "--captioner", writer, "caption")
    one_model = one_vision = False
    if writer is not None and judge is not None:
        one_model = writer is judge or writer.fingerprint == judge.fingerprint
        one_vision = one_model or _same_vision(writer, judge)
        if one_vision and writer is not judge:
            writer.adapter.model.vision = judge.adapter.model.vision
    return Models(writer, judge, one_vision, one_model).to("cpu", torch.float32)


def _open(path: str, image_size: int | None, tokenizer: str | None, dtype: str | None) -> Part:
    adapter = adapt(open_model(path, tokenizer=tokenizer, image_size=image_size, language_dtype=dtype))
    model = adapter.model
    # Every value counts: captions are made anew where the model that made them is another one.
    named, config = sorted(unique_state(model).items()), to_dict(model.config)
    if "drop_path" in config["vision"]:
        config["vision"]["drop_path"] = 0.0  # of training alone: nothing that is written or scored depends on it
    return Part(adapter, fingerprint(named, config=config, whole=True))


def _require(path: str, option: str, part: Part, what: str) -> None:
    try:
        part.adapter.need(what)
    except UserError as error:
        raise UserError(f"{option} {path}: {error}") from None


def _same_vision(first: Part, second: Part) -> bool:
    ours, theirs = first.adapter.model.vision, second.adapter.model.vision
    if type(ours) is not type(theirs) or first.image_size != second.image_size:
        return False
    mine, other = ours.state_dict(), theirs.state_dict()
    return mine.keys() == other.keys() and all(_equal(mine[name], other[name]) for name in mine)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)
