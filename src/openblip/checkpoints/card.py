"""The README.md of a model's folder: what it is, how to use it, what is known of its making.

The hub shows it as the model's page, so it begins with the hub's table of facts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openblip.checkpoints.recognise import AnyConfig, describe
from openblip.models.blip import BlipConfig
from openblip.models.blip2 import Blip2Config
from openblip.models.dual import DualConfig
from openblip.models.nlvr import NlvrConfig
from openblip.models.vqa import VqaConfig

__all__ = ["model_card"]

_CAPTION = ("openblip caption photos/ --model {name}", 'model.caption("photo.jpg")')
_MATCH = (
    'openblip match photos/ --model {name} --text "a red bus"',
    'model.match("photo.jpg", ["a red bus"])',
)
_ASK = (
    'openblip ask photos/ --model {name} --question "what is on the table?"',
    'model.answer("photo.jpg", "what is on the table?")',
)
_EMBED = ("openblip embed photos/ --model {name}", 'model.embed_images("photo.jpg")')
_PAIR = (None, 'model.judge("left.jpg", "right.jpg", "both images show a dog")')


def model_card(config: AnyConfig | Blip2Config, info: dict[str, Any], *, library: str = "openblip") -> str:
    """Markdown for a model.

    Args:
        info: what its folder tells of it; every entry becomes a line.
        library: whose format the folder has, "openblip" or "transformers".
    """
    from huggingface_hub import ModelCard, ModelCardData

    task, uses = _uses(config)
    kind = describe(config)
    if isinstance(config, Blip2Config):
        tag, about = "blip-2", _about_blip2(config)
    else:
        tag, about = "blip", _about_blip(config)
    card = ModelCard.from_template(
        ModelCardData(library_name=library, pipeline_tag=task, tags=[tag, "image-text"]),
        template_path=str(Path(__file__).with_name("card.md")),
        title=f"{kind[2:3].upper()}{kind[3:]}",
        about=about,
        commands=[command.format(name="FOLDER") for command, _ in uses if command],
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


def _uses(config: AnyConfig | Blip2Config) -> tuple[str, list[tuple[str | None, str]]]:
    if isinstance(config, VqaConfig):
        return "visual-question-answering", [_ASK]
    if isinstance(config, NlvrConfig):
        return "image-text-to-text", [_PAIR]
    if isinstance(config, DualConfig):
        return "zero-shot-image-classification", [_EMBED]
    if isinstance(config, Blip2Config):
        found: list[tuple[str | None, str]] = [] if config.language is None else [_CAPTION, _ASK]
        found += [_MATCH, _EMBED] if config.matches else []
        return ("image-to-text" if config.language else "zero-shot-image-classification"), found
    assert isinstance(config, BlipConfig)
    uses: list[tuple[str | None, str]] = [_CAPTION] if config.decoder else []
    uses += [_MATCH, _EMBED] if config.encoder else []
    return "image-to-text" if config.decoder else "zero-shot-image-classification", uses


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f'"{value}"' if value == "" or (isinstance(value, str) and value != value.strip()) else str(value)
