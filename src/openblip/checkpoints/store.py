"""Models on disk: our own folder (config.json, model.safetensors, tokenizer), and opening what others wrote.

save_model(folder, StoredModel(model, tokenizer, {"task": "caption"}))
stored = open_model(folder_or_file)          # .model, .tokenizer, .info

What differs from family to family is in the family's own module, which `FAMILIES` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openblip
from openblip.checkpoints.card import model_card
from openblip.checkpoints.recognise import KINDS, describe, family_of
from openblip.checkpoints.state import FORMAT, WEIGHTS, find, read_state
from openblip.checkpoints.stored import Family, Like, Options, StoredModel, count_parameters, unique_state
from openblip.core.config import to_dict
from openblip.core.errors import about
from openblip.core.files import write_folder, write_json, write_tensors, write_text
from openblip.core.tokenizer import TextTokenizer
from openblip.models.configs import Quantize

__all__ = [
    "FAMILIES",
    "StoredModel",
    "family",
    "model_facts",
    "open_model",
    "read_state",
    "save_model",
    "unique_state",
]


def _blip() -> Family:
    from openblip.checkpoints import blip_store

    return blip_store


def _blip2() -> Family:
    from openblip.checkpoints import blip2_store

    return blip2_store


FAMILIES: dict[str, Callable[[], Family]] = {"blip": _blip, "blip2": _blip2}
"""for each family of `recognise.KINDS` its module, which is imported once it is needed"""


def family(stored: StoredModel) -> Family:
    """The family of a model."""
    return FAMILIES[KINDS[type(stored.model.config)].family]()


def save_model(folder: Path | str, stored: StoredModel, *, whole: bool = False) -> None:
    """Write a model folder; a folder already there is replaced once the new one is complete.

    Args:
        whole: with frozen parts that come from elsewhere, so that the folder needs nothing else. A model without
            such parts is always written whole.
    """
    with write_folder(folder) as target:
        config, state, described = family(stored).pack(stored, target, whole=whole)
        write_tensors(target / WEIGHTS, state)
        description = {
            "format": FORMAT,
            "openblip_version": openblip.__version__,
            "model_type": KINDS[type(config)].name,
            "model": to_dict(config),
            **described,
            "info": stored.info,
        }
        write_json(target / "config.json", description)
        write_text(target / "README.md", model_card(config, stored.info))
        if stored.tokenizer is not None:
            stored.tokenizer.save(target)


def open_model(
    source: Path | str,
    *,
    tokenizer: TextTokenizer | str | None = None,
    image_size: int | tuple[int, int] | None = None,
    like: Like = "reference",
    vision: str | None = None,
    language: str | None = None,
    heads: Sequence[int] = (),
    language_dtype: str | None = None,
    quantize: Quantize = "none",
) -> StoredModel:
    """Open a model whoever wrote it; its description or its keys say what it is.

    Args:
        source: a folder of ours or of transformers, a checkpoint of the original repository or of LAVIS (.pth,
            .pt, .safetensors), or a name on the Hugging Face hub.
        tokenizer: for files that bring none; None takes BERT's, which the published models use.
        image_size: pixels to use the model at, one number or height and width; position embeddings are
            interpolated.
        like: for models of transformers: "transformers" computes as it does where it departs from the original.
        vision: for BLIP-2, where the frozen tower is, if not where the model says; `language` likewise.
        heads: of attention, for files of the original or LAVIS with sizes of one's own, which do not tell it: one
            number, or the vision tower's and the text transformer's (the Q-Former's).
        language_dtype: of BLIP-2's language model in models of LAVIS and transformers that name none; it is read in
            this dtype and never in float32 first. A model of ours names its own.
        quantize: BLIP-2's language model is read into 8 or 4 bits by bitsandbytes.

    Raises:
        UserError: there is nothing at `source`, it is damaged, or it is of another model.
    """
    found = find(source)
    with about(source, found.path):
        options = Options(tokenizer, image_size, like, vision, language, heads, language_dtype, quantize)
        return FAMILIES[family_of(found)]().open_found(found, options)


def model_facts(stored: StoredModel) -> dict[str, Any]:
    """What is known of a model: kind, what it can do, parameters, sizes, and what its family adds."""
    config = stored.model.config
    return {
        "is": describe(config),
        "can": KINDS[type(config)].can(config),
        "parameters": count_parameters(stored.model),
        **family(stored).facts(stored),
        "ignored_keys": stored.ignored,
        "model": to_dict(config),
        "info": stored.info,
    }
