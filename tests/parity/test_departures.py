"""Where transformers departs from the original BLIP: both ways can be had, the original's is the default.

Each test shows the difference and says which option gives transformers' values.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from their_models import TINY, Theirs
from torch import Tensor
from transformers import BlipForConditionalGeneration

from openblip.checkpoints.store import open_model
from openblip.objectives.language import language_loss, language_targets

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the reference's code sums float32 in another order"""


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def test_vision_layer_norms_divide_with_another_epsilon(theirs: Callable[..., Theirs]) -> None:
    """1e-5 in transformers, 1e-6 in the original (like="transformers" keeps theirs)."""
    source = theirs("BlipForConditionalGeneration", TINY)
    images = source.images()
    alike, default = open_model(source.folder, like="transformers"), open_model(source.folder)
    assert (alike.model.config.vision.layer_norm_eps, default.model.config.vision.layer_norm_eps) == (1e-5, 1e-6)
    assert default.info["heads"] == "4 of the text, as config.json says; BLIP's have 64 channels each"
    model = BlipForConditionalGeneration.from_pretrained(source.folder).eval()
    # Random weights spread wide; it shows where activations are small, as in trained first layers.
    for vision in (alike.model.vision, default.model.vision, model.vision_model):
        for name, parameter in vision.named_parameters():
            if "embed" in name or "cls_token" in name:
                parameter.mul_(0.02)
    wanted = model.vision_model(pixel_values=images).last_hidden_state
    torch.testing.assert_close(alike.model.encode_image(images), wanted, **CLOSE)
    assert gap(default.model.encode_image(images), wanted) > 1e-3


@torch.no_grad()
def test_a_processor_that_normalizes_otherwise_is_followed(theirs: Callable[..., Theirs], tmp_path: Path) -> None:
    """Its values are folded into the patch embedding, since images are normalized with CLIP's here."""
    source = theirs("BlipForConditionalGeneration", TINY)
    folder = shutil.copytree(source.folder, tmp_path / "model")
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]
    transformers.BlipImageProcessor(image_mean=mean, image_std=std).save_pretrained(folder)
    model = open_model(folder, like="transformers").model
    pixels = torch.randint(256, source.images().shape, dtype=torch.uint8)
    given = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    wanted = source.model.vision_model(pixel_values=given).last_hidden_state
    torch.testing.assert_close(model.encode_image(model.vision.normalize(pixels)), wanted, **CLOSE)
    plain = open_model(source.folder, like="transformers").model
    assert gap(plain.encode_image(plain.vision.normalize(pixels)), wanted) > 1e-2


@torch.no_grad()
def test_texts_to_match_begin_with_another_token(theirs: Callable[..., Theirs]) -> None:
    """[CLS] in transformers, [ENC] in the original's training and evaluation (first="cls" gives theirs)."""
    source = theirs("BlipForImageTextRetrieval", TINY)
    images = source.images()
    text = source.tokenizer.encode(["a red bus", "two dogs"])
    wanted = source.model(
        pixel_values=images, input_ids=text.input_ids, attention_mask=text.attention_mask.long()
    ).itm_score
    model = open_model(source.folder, like="transformers").model
    memory = model.remember(model.encode_image(images))
    as_theirs = source.tokenizer.encode(["a red bus", "two dogs"], first="cls")
    as_ours = source.tokenizer.encode(["a red bus", "two dogs"], first="enc")
    torch.testing.assert_close(model.match(as_theirs.input_ids, as_theirs.attention_mask, memory), wanted, **CLOSE)
    assert gap(model.match(as_ours.input_ids, as_ours.attention_mask, memory), wanted) > 1e-2


@torch.no_grad()
def test_answers_read_the_padding_of_questions(theirs: Callable[..., Theirs]) -> None:
    """transformers lets answers read padded states, in generation and, losing the mask, in `forward` too: a short
    question's answer depends on the longest in its batch. By default padding is masked here.
    """
    source = theirs("BlipForQuestionAnswering", TINY)
    images = source.images()
    both = source.tokenizer.encode(["is the dog red", "what color is the big bus in front of the man"], first="cls")
    alone = source.tokenizer.encode(["is the dog red"], first="cls")
    answer = source.tokenizer.encode(["red"], first="dec")

    def logits_of_theirs(text: Any, count: int) -> Tensor:
        states = source.model.text_encoder(
            input_ids=text.input_ids,
            attention_mask=text.attention_mask.long(),
            encoder_hidden_states=source.model.vision_model(pixel_values=images[:count]).last_hidden_state,
        ).last_hidden_state
        out = source.model.text_decoder(
            input_ids=answer.input_ids.expand(count, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=text.attention_mask.long(),
        )
        return out.logits[0]

    assert gap(logits_of_theirs(both, 2), logits_of_theirs(alone, 1)) > 1e-3, "theirs depends on the batch"

    model = open_model(source.folder, like="transformers").model
    memory = model.remember(model.encode_image(images))
    states = model.read_question(both.input_ids, both.attention_mask, memory)

    def logits_of_ours(mask: Tensor | None) -> Tensor:
        read = model.remember_question(states, mask)
        return model.text_decoder(answer.input_ids.expand(2, -1), memory=read)[0]

    torch.testing.assert_close(logits_of_ours(None), logits_of_theirs(both, 2), **CLOSE)
    torch.testing.assert_close(logits_of_ours(both.attention_mask), logits_of_theirs(alone, 1), **CLOSE)


@torch.no_grad()
def test_the_caption_loss_is_smoothed(theirs: Callable[..., Theirs]) -> None:
    """0.1 in the original, 0 in transformers by default (label_smoothing=0.0 gives theirs)."""
    source = theirs("BlipForConditionalGeneration", TINY)
    images = source.images()
    text = source.tokenizer.encode(["a red bus next to the man", "two dogs"], first="dec")
    targets = language_targets(text.input_ids, text.attention_mask)
    wanted = source.model(
        pixel_values=images, input_ids=text.input_ids, attention_mask=text.attention_mask.long(), labels=targets
    ).loss
    model = open_model(source.folder, like="transformers").model
    logits = model.decoder(text.input_ids, text.attention_mask, memory=model.remember(model.encode_image(images)))
    torch.testing.assert_close(language_loss(logits, targets, label_smoothing=0.0), wanted, **CLOSE)
    assert gap(language_loss(logits, targets), wanted) > 1e-2
