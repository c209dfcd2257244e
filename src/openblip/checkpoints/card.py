"""The README.md of a model's folder: what it is, how to use it, what is known of its making.

The hub shows it as the model's page, so it begins with the hub's table of facts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from openblip.checkpoints.recognise import KINDS, AnyConfig, describe
from openblip.models.blip2 import Blip2Config

__all__ = ["model_card"]

_USES = {
    "caption": ("openblip caption photos/ --model FOLDER", 'model.caption("photo.jpg")'),
    "ask": (
        'openblip ask photos/ --model FOLDER --question "what is on the table?"',
        'model.answer("photo.jpg", "what is on the table?")',
    ),
    "match": (
        'openblip match photos/ --model FOLDER --text "a red bus"',
        'model.match("photo.jpg", ["a red bus"])',
    ),
    "embed": ("openblip embed photos/ --model FOLDER", 'model.embed_images("photo.jpg")'),
    "judge": (
        'openblip judge left.jpg right.jpg --model FOLDER --text "both images show a dog"',
        'model.judge("left.jpg", "right.jpg", "both images show a dog")',
    ),
}
"""for what a model can do (`Kind.can`): the command, and the call in Python"""
_TASKS = {
    "caption": "image-to-text",
    "ask": "visual-question-answering",
    "match": "zero-shot-image-classification",
    "embed": "zero-shot-image-classification",
    "judge": "image-text-to-text",
}
"""the hub's name for what a model is mainly for"""


def model_card(config: AnyConfig | Blip2Config, info: dict[str, Any], *, library: str = "openblip") -> str:
    """Markdown for a model.

    Args:
        info: what its folder tells of it; every entry becomes a line.
        library: whose format the folder has, "openblip" or "transformers".
    """
    from huggingface_hub import ModelCard, ModelCardData

    known, kind = KINDS[type(config)], describe(config)
    tag, about = _FAMILIES[known.family]
    can = known.can(config)
    uses = [_USES[name] for name in can if name in _USES]
    card = ModelCard.from_template(
        ModelCardData(library_name=library, pipeline_tag=_TASKS[can[0]], tags=[tag, "image-text"]),
        template_path=str(Path(__file__).with_name("card.md")),
        title=f"{kind[2:3].upper()}{kind[3:]}",
        about=about(config),
        commands=[command for command, _ in uses],
        calls=[call for _, call in uses],
        origin=[f"{key}: {_value(value)}" for key, value in info.items()] or ["nothing was noted"],
    )
    return str(card)


def _about_blip(config: AnyConfig) -> str:
    text = config.text
    return (
        f"The text side is {text.width} wide, {text.depth} deep, with {text.vocab_size:,} tokens. The model is "
        "BLIP's (Li et\nal., ICML 2022, arXiv 2201.12086)."
    )


def _about_blip2(config: Blip2Config) -> str:
    qformer = config.qformer
    return (
        f"The Q-Former is {qformer.width} wide, {qformer.depth} deep, with {qformer.num_queries} queries; the rest "
        "is frozen.\nThe model is BLIP-2's (Li et al., ICML 2023, arXiv 2301.12597)."
    )


_FAMILIES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "blip": ("blip", _about_blip),
    "blip2": ("blip-2", _about_blip2),
}
"""for each family the hub's tag and what the card says of a model"""


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f'"{value}"' if value == "" or (isinstance(value, str) and value != value.strip()) else str(value)
