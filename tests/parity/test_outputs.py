"""Outputs of transformers' BLIP classes and of the same weights opened here, and the way back.

Opened with like="transformers" the numbers are theirs; by default they are the original repository's, which
differ where the tests of departures say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from their_models import BASE, DEEP, ODD, TINY, Theirs
from transformers import AutoProcessor
from transformers.models.blip import modeling_blip

from openblip.checkpoints.blip_hf import write_transformers
from openblip.checkpoints.store import StoredModel, open_model, save_model

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the reference's code sums float32 in another order"""
TEXTS = ["a red bus next to the man", "two dogs"]
CLASSES = ["BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipForQuestionAnswering", "BlipModel"]

SIZES = [
    *(pytest.param(kind, TINY, id=f"{kind}-tiny") for kind in CLASSES),
    *(pytest.param(kind, ODD, id=f"{kind}-odd") for kind in CLASSES if kind != "BlipForQuestionAnswering"),
    *(pytest.param(kind, DEEP, id=f"{kind}-deep") for kind in CLASSES),
    *(
        pytest.param(kind, {**BASE, "image_size": 384}, id=f"{kind}-base-384", marks=pytest.mark.slow)
        for kind in CLASSES
    ),
]


@torch.no_grad()
def their_outputs(model: Any, theirs: Theirs, images: torch.Tensor) -> dict[str, torch.Tensor]:
    text = theirs.tokenizer.encode(TEXTS[: len(images)])
    ids, mask = text.input_ids, text.attention_mask.long()
    kind = type(model).__name__
    if kind == "BlipForConditionalGeneration":
        out = model(pixel_values=images, input_ids=ids, attention_mask=mask)
        return {"image_embeds": out.image_embeds, "logits": out.logits[mask.bool()]}
    if kind == "BlipForImageTextRetrieval":
        matched = model(pixel_values=images, input_ids=ids, attention_mask=mask)
        cosine = model(pixel_values=images, input_ids=ids, attention_mask=mask, use_itm_head=False)
        return {"itm": matched.itm_score, "itc": cosine.itm_score}
    if kind == "BlipForQuestionAnswering":
        answers = theirs.tokenizer.encode(["red", "yes no"][: len(images)], first="dec")
        states = model.text_encoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=model.vision_model(pixel_values=images).last_hidden_state,
        ).last_hidden_state
        out = model.text_decoder(
            input_ids=answers.input_ids,
            attention_mask=answers.attention_mask.long(),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
        )
        return {"states": states[mask.bool()], "logits": out.logits[answers.attention_mask]}
    out = model(pixel_values=images, input_ids=ids, attention_mask=mask)
    return {"image": out.image_embeds, "text": out.text_embeds, "logits": out.logits_per_image}


@torch.no_grad()
def our_outputs(model: Any, theirs: Theirs, images: torch.Tensor) -> dict[str, torch.Tensor]:
    text = theirs.tokenizer.encode(TEXTS[: len(images)])
    ids, mask = text.input_ids, text.attention_mask
    kind = type(theirs.model).__name__
    embeds = model.encode_image(images)
    if kind == "BlipModel":
        image, words = model.image_features(embeds), model.text_features(ids, mask)
        return {"image": image, "text": words, "logits": model.similarity(image, words)}
    memory = model.remember(embeds)
    if kind == "BlipForConditionalGeneration":
        return {"image_embeds": embeds, "logits": model.decoder(ids, mask, memory=memory)[mask]}
    if kind == "BlipForImageTextRetrieval":
        cosine = model.image_features(embeds) @ model.text_features(ids, mask).T
        return {"itm": model.match(ids, mask, memory), "itc": cosine}
    answers = theirs.tokenizer.encode(["red", "yes no"][: len(images)], first="dec")
    states = model.read_question(ids, mask, memory)
    read = model.remember_question(states, None)  # transformers loses the question's mask, see test_departures
    logits = model.text_decoder(answers.input_ids, answers.attention_mask, memory=read)
    return {"states": states[mask], "logits": logits[answers.attention_mask]}


def assert_same(ours: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("kind", "sizes"), SIZES)
def test_both_ways(theirs: Callable[..., Theirs], tmp_path: Path, kind: str, sizes: dict[str, int]) -> None:
    """Their folder opens here with their numbers; exported, it opens there with the same numbers and bits."""
    source = theirs(kind, sizes)
    images = source.images(1 if sizes["width"] >= 768 else 2)
    wanted = their_outputs(source.model, source, images)
    opened = open_model(source.folder, like="transformers")
    assert_same(our_outputs(opened.model, source, images), wanted)

    target = tmp_path / "exported"
    target.mkdir()
    write_transformers(target, opened.model, opened.tokenizer)
    again, report = getattr(modeling_blip, kind).from_pretrained(target, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert_same(their_outputs(again.eval(), source, images), wanted)
    before, after = load_file(source.folder / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before), "bits survive the way there and back"


@pytest.mark.parametrize("kind", CLASSES)
def test_our_own_folder_in_between_keeps_every_bit(
    theirs: Callable[..., Theirs], tmp_path: Path, kind: str
) -> None:
    source = theirs(kind, TINY)
    opened = open_model(source.folder, like="transformers")
    save_model(tmp_path / "own", StoredModel(opened.model, opened.tokenizer, opened.info))
    own = open_model(tmp_path / "own")
    assert own.model.config == opened.model.config
    state = opened.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in own.model.state_dict().items())
    assert_same(our_outputs(own.model, source, source.images()), our_outputs(opened.model, source, source.images()))


def test_the_processor_and_tokenizer_of_an_export(theirs: Callable[..., Theirs], tmp_path: Path) -> None:
    source = theirs("BlipForConditionalGeneration", TINY)
    opened = open_model(source.folder)
    write_transformers(tmp_path, opened.model, opened.tokenizer)
    processor = AutoProcessor.from_pretrained(tmp_path)
    from PIL import Image

    image = Image.effect_noise((70, 50), 90).convert("RGB")
    made = processor(images=image, text="a red bus", return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, source.size, source.size)
    ours = opened.tokenizer.encode(["a red bus"])
    assert torch.equal(made["input_ids"], ours.input_ids)
    assert torch.equal(made["attention_mask"].bool(), ours.attention_mask)
    back = processor.decode(ours.input_ids[0], skip_special_tokens=True)
    assert back == opened.tokenizer.decode(ours.input_ids[0])


def test_temperature_comes_back_though_they_have_no_place_for_it(
    theirs: Callable[..., Theirs], tmp_path: Path
) -> None:
    opened = open_model(theirs("BlipForImageTextRetrieval", TINY).folder)
    with torch.no_grad():
        opened.model.temperature.fill_(math.pi / 50)
    write_transformers(tmp_path, opened.model, opened.tokenizer)
    assert torch.equal(open_model(tmp_path).model.temperature, opened.model.temperature)


def test_weights_in_several_files_and_pickled_ones(theirs: Callable[..., Theirs], tmp_path: Path) -> None:
    source = theirs("BlipForImageTextRetrieval", TINY)
    wanted = our_outputs(open_model(source.folder).model, source, source.images())
    source.model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    source.tokenizer.save(tmp_path / "shards")
    assert_same(our_outputs(open_model(tmp_path / "shards").model, source, source.images()), wanted)

    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(source.model.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "config.json").write_bytes((source.folder / "config.json").read_bytes())
    source.tokenizer.save(pickled)
    assert_same(our_outputs(open_model(pickled).model, source, source.images()), wanted)
