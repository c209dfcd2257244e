"""What the tensors of an original or LAVIS file do not tell: the entry that our exports have beside them.

The loaders of the original and of LAVIS read "model" alone and pass over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from openblip.core.errors import UserError
from openblip.models.configs import Chat, QFormerConfig, TextConfig, VisionConfig

__all__ = ["PUBLISHED_WIDTHS", "Notes", "heads_of", "read_notes", "write_notes"]


@dataclass(frozen=True)
class Notes:
    """What stands in the entry; None where there is none."""

    vision_heads: int | None = None
    text_heads: int | None = None
    image_size: tuple[int, int] | None = None
    vision_eps: float | None = None
    """of the vision tower's LayerNorms, if not the original's; `text_eps` of those of text or Q-Former"""
    text_eps: float | None = None
    vision_norm_eps: float | None = None
    """of BLIP-2's LayerNorm over the tower"""
    end: str | None = None
    """what ends the texts of BLIP-2's language model"""
    begin: str | None = None
    """what stands in place of its [BOS]"""
    chat: Chat | None = None
    """whether its prompts stand in a user's turn"""
    prompt: str | None = None
    reads_questions: bool | None = None
    """whether BLIP-2's Q-Former reads the question too"""
    reads_prompts: bool | None = None
    """whether it reads the whole prompt, as InstructBLIP's does"""


def write_notes(vision: VisionConfig | None, text: TextConfig | QFormerConfig) -> dict[str, Any]:
    """The entry beside the tensors; `vision` is None where the tower is not in the file."""
    notes: dict[str, Any] = {"text_heads": text.num_heads}
    if text.layer_norm_eps != type(text).layer_norm_eps:
        notes["text_eps"] = text.layer_norm_eps
    if vision is not None:
        notes |= {"vision_heads": vision.num_heads, "image_size": list(vision.pixels)}
        if vision.layer_norm_eps != VisionConfig.layer_norm_eps:
            notes["vision_eps"] = vision.layer_norm_eps
    return notes


def read_notes(notes: Mapping[str, Any]) -> Notes:
    """What `write_notes` and BLIP-2 wrote; anything else in its place counts as nothing."""
    size, end, begin, prompt, chat = (notes.get(name) for name in ("image_size", "end", "begin", "prompt", "chat"))
    questions, prompts = notes.get("reads_questions"), notes.get("reads_prompts")
    pixels = None
    if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size):
        pixels = (size[0], size[1])
    return Notes(
        vision_heads=_count(notes.get("vision_heads")),
        text_heads=_count(notes.get("text_heads")),
        image_size=pixels,
        vision_eps=_number(notes.get("vision_eps")),
        text_eps=_number(notes.get("text_eps")),
        vision_norm_eps=_number(notes.get("vision_norm_eps")),
        end=end if isinstance(end, str) else None,
        begin=begin if isinstance(begin, str) else None,
        chat=cast(Chat, chat) if chat in get_args(Chat) else None,
        prompt=prompt if isinstance(prompt, str) else None,
        reads_questions=questions if isinstance(questions, bool) else None,
        reads_prompts=prompts if isinstance(prompts, bool) else None,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


PUBLISHED_WIDTHS = {768, 1024, 1408}


def heads_of(width: int, part: str, source: str) -> int:
    """The number of heads in `width` channels, which tensors do not tell: 64 channels each, as published.

    Raises:
        UserError: 64 does not divide the width.
    """
    if width % 64:
        raise UserError(
            f"{source} does not say how many attention heads its {part} has, and {width} channels are no multiple "
            "of the published models' 64 for each: name the number when it is converted, "
            "openblip convert FILE FOLDER --to openblip --heads 4"
        )
    return width // 64
