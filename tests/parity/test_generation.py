"""Ids that transformers' generate writes, and ours with its way of scoring beams: greedy, beams of 3 and 5, bounds,
penalties, prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from their_models import BASE, ODD, TINY, Theirs
from torch import Tensor

from openblip.checkpoints.store import open_model
from openblip.generation.decode import DecodeConfig, decode
from openblip.generation.types import Stepper
from openblip.models.stepper import DecoderStepper

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam3": {"num_beams": 3},
    "beam5": {"num_beams": 5},
    "bounds": {"num_beams": 3, "min_new_tokens": 6, "max_new_tokens": 9},
    "penalty": {"repetition_penalty": 1.5},
    "beam-penalty": {"num_beams": 5, "repetition_penalty": 1.3, "min_new_tokens": 4},
    "ngrams": {"num_beams": 3, "no_repeat_ngram": 2},
}
SIZES = [
    pytest.param(TINY, id="tiny"),
    pytest.param(ODD, id="odd"),
    pytest.param({**BASE, "image_size": 384}, id="base-384", marks=pytest.mark.slow),
]
NAMES = {"no_repeat_ngram": "no_repeat_ngram_size"}


def write(stepper: Stepper, prompt: Tensor, source: Theirs, settings: dict[str, Any]) -> Tensor:
    config = DecodeConfig(**{"max_new_tokens": 12, "beam_scoring": "transformers", **settings})
    words = source.tokenizer
    decoded = decode(stepper, prompt, None, config, eos_ids=words.sep_id, pad_id=words.pad_id)
    return decoded.with_prompts(prompt, pad_id=words.pad_id)


def assert_equal(ours: Tensor, wanted: Tensor, pad_id: int) -> None:
    assert torch.equal(ours, wanted[:, : ours.shape[1]])
    assert (wanted[:, ours.shape[1] :] == pad_id).all()


def their_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {"max_new_tokens": 12, **{NAMES.get(name, name): value for name, value in settings.items()}}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("prompt", ["", "a photo of "])
@pytest.mark.parametrize("name", SETTINGS)
def test_captions(theirs: Callable[..., Theirs], name: str, prompt: str, sizes: dict[str, int]) -> None:
    big = sizes["width"] >= 768
    if big and (name in ("bounds", "penalty") or (prompt and name != "beam3")):
        pytest.skip("at full size a part of the settings is enough")
    source = theirs("BlipForConditionalGeneration", sizes)
    images = source.images(1 if big else 3)
    opened = open_model(source.folder, like="transformers")
    ids = source.tokenizer.encode([prompt] * len(images), first="dec", end=False).input_ids
    end = torch.full((len(images), 1), source.tokenizer.sep_id)  # which their generate cuts off again
    wanted = source.model.generate(
        pixel_values=images, input_ids=torch.cat((ids, end), dim=1), **their_settings(SETTINGS[name])
    )
    with torch.no_grad():
        memory = opened.model.remember(opened.model.encode_image(images))
    ours = write(DecoderStepper(opened.model.decoder, memory), ids, source, SETTINGS[name])
    assert_equal(ours, wanted, source.tokenizer.pad_id)


@pytest.mark.parametrize("name", ["greedy", "beam3", "beam5", "bounds"])
def test_answers(theirs: Callable[..., Theirs], name: str) -> None:
    """Over questions of unequal length, with their all-ones mask over padding."""
    source = theirs("BlipForQuestionAnswering", TINY)
    images = source.images()
    text = source.tokenizer.encode(["is the dog red", "what color is the big bus next to the man"])
    wanted = source.model.generate(
        input_ids=text.input_ids,
        pixel_values=images,
        attention_mask=text.attention_mask.long(),
        **their_settings(SETTINGS[name]),
    )
    model = open_model(source.folder, like="transformers").model
    with torch.no_grad():
        memory = model.remember(model.encode_image(images))
        states = model.read_question(text.input_ids, text.attention_mask, memory)
        read = model.remember_question(states, None)
    prompt = torch.full((len(images), 1), source.tokenizer.dec_id)
    ours = write(DecoderStepper(model.text_decoder, read), prompt, source, SETTINGS[name])
    assert_equal(ours, wanted, source.tokenizer.pad_id)
