"""Live parity with transformers' BLIP-2 classes on random weights, both ways: outputs and written ids."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_blip2 import PIXELS, images, make_image, model, spread, tokenizer, write_language
from test_store import stored
from torch import Tensor

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.models.blip2 import Blip2
from openblip.models.language_stepper import CausalStepper, Seq2SeqStepper

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the reference's code sums float32 in another order"""
PROMPTS = ["a photo of", "question what is a dog answer", "the"]


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds: Any = ("opt", "llama", "t5")
    return {kind: write_language(tmp_path_factory.mktemp(kind), kind) for kind in kinds}


def write_theirs(folder: Path, llm: Path | None) -> Any:
    """A folder that transformers' own class wrote, with its processor; stage 1 without a language model."""
    sizes: dict[str, Any] = {
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": PIXELS, "patch_size": 8,
        },
        "qformer_config": {
            "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
            "vocab_size": tokenizer().vocab_size, "max_position_embeddings": 32,
            "use_qformer_text_input": llm is None,
        },
        "num_query_tokens": 4,
        "image_text_hidden_size": 16,
    }  # fmt: skip
    torch.manual_seed(2)
    processing = transformers.BlipImageProcessor(size={"height": PIXELS, "width": PIXELS})
    if llm is None:
        theirs: Any = transformers.Blip2ForImageTextRetrieval(transformers.Blip2Config(**sizes))
        tokenizer().save(folder)
    else:
        text = transformers.AutoConfig.from_pretrained(llm)
        words = transformers.AutoTokenizer.from_pretrained(llm)
        config = transformers.Blip2Config(**sizes, text_config=text.to_dict())
        processor = transformers.Blip2Processor(processing, words, num_query_tokens=4)
        config.image_token_index = words.convert_tokens_to_ids("<image>")
        processor.save_pretrained(folder)
        theirs = transformers.Blip2ForConditionalGeneration(config)
    spread(theirs, 0.25)
    theirs.eval().save_pretrained(folder)
    return theirs


def image_text(processor: Any, count: int, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids with today's expansion of the image tokens, and their mask, padded on the left."""
    processor.tokenizer.padding_side = "left"
    rows = [processor(images=make_image(i), text=prompts[i], return_tensors="pt") for i in range(count)]
    width = max(row["input_ids"].shape[1] for row in rows)
    pad = torch.nn.functional.pad
    ids = [pad(row["input_ids"], (width - row["input_ids"].shape[1], 0)) for row in rows]
    masks = [pad(row["attention_mask"], (width - row["attention_mask"].shape[1], 0)) for row in rows]
    return torch.cat(ids), torch.cat(masks)


@torch.no_grad()
def our_ids(found: StoredModel, pixels: Tensor, prompts: list[str], beams: int) -> Any:
    made: Blip2 = found.model
    language_tokenizer = found.language_tokenizer
    assert language_tokenizer is not None
    soft = made.soft_prompt(made.remember(made.encode_image(pixels)))
    config = DecodeConfig(num_beams=beams, max_new_tokens=7, beam_scoring="transformers")
    if made.llm.is_encoder_decoder:
        read = language_tokenizer.prompts(prompts, side="right", end=True)
        stepper: Any = Seq2SeqStepper(made.llm, *made.llm.encode(soft, read.input_ids, read.attention_mask))
        start, mask = torch.full((len(prompts), 1), made.llm.start_id), None
    else:
        read = language_tokenizer.prompts(prompts, side="left")
        stepper, start, mask = CausalStepper(made.llm, soft), read.input_ids, read.attention_mask
    return decode(
        stepper, start, mask, config, eos_ids=language_tokenizer.stop_ids, pad_id=language_tokenizer.pad_id
    )


def same_ids(decoded: Any, expected: Tensor, language_tokenizer: LanguageTokenizer, *, skip: int = 0) -> None:
    for row, length in enumerate(decoded.lengths.tolist()):
        ids = expected[row, skip:].tolist()
        assert decoded.ids[row, :length].tolist() == ids[:length]
        assert all(token in (language_tokenizer.pad_id, *language_tokenizer.stop_ids) for token in ids[length:])


def agree(theirs: Any, found: StoredModel, processor: Any, *, banned: int | None = None) -> None:
    """Soft prompts, logits and written ids of the two."""
    made, language_tokenizer, pixels = found.model, found.language_tokenizer, images()
    assert language_tokenizer is not None
    ids, mask = image_text(processor, 3, PROMPTS)
    encoder_decoder = made.llm.is_encoder_decoder
    with torch.no_grad():
        soft = made.soft_prompt(made.remember(made.encode_image(pixels)))
        torch.testing.assert_close(soft, theirs.get_image_features(pixels).pooler_output, **CLOSE)
        if not encoder_decoder:
            expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits
            read = language_tokenizer.prompts(PROMPTS, side="right")
            logits = made.llm.decoder_logits(soft, read.input_ids, read.attention_mask)
            for row in range(3):
                count = int(read.attention_mask[row].sum()) + 1
                torch.testing.assert_close(
                    logits[row, :count, : made.llm.vocab_size],
                    expected[row, -count:, : made.llm.vocab_size],
                    **CLOSE,
                )
        for beams in (1, 3):
            options: dict[str, Any] = {
                "eos_token_id": language_tokenizer.stop_ids,
                "pad_token_id": language_tokenizer.pad_id,
            }
            written = theirs.generate(
                pixel_values=pixels, input_ids=ids, attention_mask=mask, max_new_tokens=7, num_beams=beams,
                do_sample=False, suppress_tokens=None if banned is None else [banned], **options,
            )  # fmt: skip
            # A decoder that is given ids and embeddings gives the ids back too.
            skip = written.shape[1] - 7 if not encoder_decoder and written.shape[1] > 7 else int(encoder_decoder)
            same_ids(our_ids(found, pixels, PROMPTS, beams), written, language_tokenizer, skip=skip)


@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_a_folder_of_theirs_is_opened(
    tmp_path: Path, llms: dict[str, Path], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = write_theirs(tmp_path / "theirs", llms[kind])
    capfd.readouterr()
    found = open_model(tmp_path / "theirs")
    assert capfd.readouterr() == ("", "")  # transformers would list all weights that are not of the language model
    assert isinstance(found.model, Blip2)
    assert found.tokenizer is None
    agree(theirs, found, transformers.Blip2Processor.from_pretrained(tmp_path / "theirs"))
    # and ours of it goes back, from a folder that needs nothing else
    again = open_model(convert_model(found, tmp_path / "ours", to="openblip"))
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_what_is_exported_runs_there(tmp_path: Path, llms: dict[str, Path], kind: str) -> None:
    made = model(language=llms[kind], matches=False, vision_norm_eps=1e-6)
    ours = stored(made, llms[kind])
    folder = convert_model(ours, tmp_path / "out", to="transformers")
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(folder)
    processor = transformers.Blip2Processor.from_pretrained(folder)
    assert processor.num_query_tokens == 4
    agree(theirs, StoredModel(made, None, {}, [], LanguageTokenizer.load(llms[kind])), processor)
    # Their processor's pixels are what our tower is given.
    assert processor(images=make_image(0), return_tensors="pt")["pixel_values"].shape == (1, 3, PIXELS, PIXELS)
    base = transformers.Blip2Model.from_pretrained(folder)
    with torch.no_grad():
        queries = made.read_image(made.remember(made.encode_image(images())))
        torch.testing.assert_close(base.get_qformer_features(images()), queries, **CLOSE)
    back = open_model(folder)
    state, mine = back.model.state_dict(), made.state_dict()
    for name in mine:
        if not name.startswith("qformer.") or name in state:
            assert torch.equal(state[name], mine[name]), name


def test_no_room_for_the_image_token(tmp_path: Path, llms: dict[str, Path]) -> None:
    """A vocabulary without spare rows grows by the image token, which is never written."""
    llm = tmp_path / "llm"
    hf = transformers.OPTForCausalLM.from_pretrained(llms["opt"])
    words = transformers.AutoTokenizer.from_pretrained(llms["opt"])
    hf.resize_token_embeddings(len(words))
    hf.save_pretrained(llm)
    words.save_pretrained(llm)
    made = model(language=llm, matches=False, vision_norm_eps=1e-6)
    folder = convert_model(stored(made, llm), tmp_path / "out", to="transformers")
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(folder)
    image_id = theirs.config.image_token_index
    assert image_id == made.llm.vocab_size
    assert theirs.config.text_config.vocab_size == image_id + 1
    assert theirs.generation_config.suppress_tokens == [image_id]
    processor = transformers.Blip2Processor.from_pretrained(folder)
    agree(theirs, StoredModel(made, None, {}, [], LanguageTokenizer.load(llm)), processor, banned=image_id)


@torch.no_grad()
def matching(theirs: Any, made: Blip2, pixels: Tensor) -> None:
    words = tokenizer().encode(["a red bus on a road", "two dogs", "the road"])
    inputs = {"pixel_values": pixels, "input_ids": words.input_ids, "attention_mask": words.attention_mask.long()}
    memory = made.remember(made.encode_image(pixels))
    expected = theirs(**inputs, use_image_text_matching_head=True).logits_per_image
    torch.testing.assert_close(made.match(words.input_ids, words.attention_mask, memory), expected, **CLOSE)
    out = theirs(**inputs, use_image_text_matching_head=False)
    features = made.image_features(made.read_image(memory))
    torch.testing.assert_close(features, out.image_embeds, **CLOSE)
    torch.testing.assert_close(made.text_features(words.input_ids, words.attention_mask), out.text_embeds, **CLOSE)


def test_retrieval_models_both_ways(tmp_path: Path) -> None:
    theirs = write_theirs(tmp_path / "theirs", None)
    found = open_model(tmp_path / "theirs")
    assert isinstance(found.model, Blip2)
    assert found.tokenizer is not None
    assert not found.model.config.qformer.writes
    matching(theirs, found.model, images())
    made = model(vision_norm_eps=1e-6)
    with torch.no_grad():
        made.temperature.fill_(0.02)
    folder = convert_model(stored(made), tmp_path / "out", to="transformers")
    exported = transformers.Blip2ForImageTextRetrieval.from_pretrained(folder)
    matching(exported, made, images())
    processor = transformers.Blip2Processor.from_pretrained(folder)
    ids = processor(images=make_image(0), text="a red bus", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokenizer().encode(["a red bus"]).input_ids)
    back = open_model(folder)
    assert back.model.temperature.item() == pytest.approx(0.02)


def test_images_that_their_processor_normalizes_otherwise(tmp_path: Path) -> None:
    theirs = write_theirs(tmp_path / "theirs", None)
    size = {"height": PIXELS, "width": PIXELS}
    processing = transformers.BlipImageProcessor(size=size, image_mean=[0.5, 0.4, 0.3], image_std=[0.5, 0.6, 0.7])
    processing.save_pretrained(tmp_path / "theirs")
    found = open_model(tmp_path / "theirs")
    picture = make_image(0).resize((PIXELS, PIXELS))
    pixels = processing(picture, return_tensors="pt")["pixel_values"]
    made = found.model
    ours = made.vision.normalize(torch.from_numpy(np.asarray(picture.convert("RGB"))).permute(2, 0, 1)[None])
    assert not torch.allclose(ours, pixels, atol=0.1)
    words = tokenizer().encode(["a red bus on a road"])
    ids, mask = words.input_ids, words.attention_mask
    expected = theirs(
        pixel_values=pixels, input_ids=ids, attention_mask=mask.long(), use_image_text_matching_head=True
    ).logits_per_image
    memory = made.remember(made.encode_image(ours))
    torch.testing.assert_close(made.match(ids, mask, memory), expected, **CLOSE)


def test_an_export_keeps_whether_prompts_stand_in_a_users_turn(tmp_path: Path, llms: dict[str, Path]) -> None:
    write_theirs(tmp_path / "theirs", llms["opt"])
    found = open_model(tmp_path / "theirs")
    assert found.model.llm.config.chat == "auto"
    found.model.llm.config = replace(found.model.llm.config, chat="no")
    folder = convert_model(found, tmp_path / "out", to="transformers")
    assert open_model(folder).model.llm.config.chat == "no"


def test_lavis_files_of_ours_hold_what_was_trained_and_a_tower_of_their_own(tmp_path: Path) -> None:
    made = model()
    file = convert_model(stored(made), tmp_path / "m.pth", to="blip")
    state = torch.load(file, weights_only=True)["model"]
    assert state["query_tokens"].shape == (1, 4, 32)
    assert "temp" in state
    assert state["visual_encoder.pos_embed"].shape == (1, 17, 32)
    assert not any(key.startswith("visual_encoder.norm") for key in state)


def test_what_they_have_no_class_for_is_refused(tmp_path: Path) -> None:
    silent = model(qformer={"vocab_size": None}, matches=False)
    with pytest.raises(UserError, match="no heads for matching"):
        convert_model(stored(silent), tmp_path / "a", to="transformers")
    with pytest.raises(UserError, match="no class for its captions"):
        convert_model(stored(model()), tmp_path / "b", to="transformers", part="caption")
    with pytest.raises(UserError, match=r"m\.pth"):
        convert_model(stored(model()), tmp_path / "m", to="blip")
    write_theirs(tmp_path / "theirs", None)
    described = json.loads((tmp_path / "theirs" / "config.json").read_text())
    described["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="relu"):
        open_model(tmp_path / "theirs")
    assert load_file(tmp_path / "theirs" / "model.safetensors")


def test_an_epsilon_of_early_conversions_is_the_originals(llms: dict[str, Path], tmp_path: Path) -> None:
    """transformers wrote 1e-5 for LAVIS' 1e-6; like="transformers" keeps it, and an export of ours means it."""
    write_theirs(tmp_path, llms["opt"])
    told = json.loads((tmp_path / "config.json").read_text())
    for eps, like, wanted in (
        (1e-5, "reference", 1e-6),
        (1e-5, "transformers", 1e-5),
        (1e-6, "reference", 1e-6),
        (1e-3, "reference", 1e-3),
    ):
        told["vision_config"]["layer_norm_eps"] = eps
        (tmp_path / "config.json").write_text(json.dumps(told))
        config = open_model(tmp_path, like=like).model.config  # type: ignore[arg-type]
        assert (config.vision.own.layer_norm_eps, config.vision_norm_eps) == (wanted, eps)
    exported = {**told, "vision_norm_eps": 1e-4, "vision_config": {**told["vision_config"], "layer_norm_eps": 1e-5}}
    (tmp_path / "config.json").write_text(json.dumps(exported))
    config = open_model(tmp_path).model.config
    assert (config.vision.own.layer_norm_eps, config.vision_norm_eps) == (1e-5, 1e-4)
