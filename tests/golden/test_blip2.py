"""BLIP-2's losses, gradients, features and written ids against the reference's values."""

from __future__ import annotations

import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.blip2 import _vision, load_lavis_state, qformer_from_state
from openblip.core.language_tokenizer import LanguageBatch
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.generation.decode import DecodeConfig, decode
from openblip.models.blip2 import Blip2, Blip2Config, best_query
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig, VisionConfig
from openblip.models.language import FrozenLanguage
from openblip.models.language_stepper import CausalStepper, Seq2SeqStepper
from openblip.models.stepper import QFormerStepper
from openblip.models.tower import make_tower
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2
from openblip.objectives.configs import Stage1Config
from openblip.objectives.matching import Negatives

ROOT = Path(os.environ.get("OPENBLIP_GOLDEN", Path(__file__).parent))
FOLDER = ROOT / "blip2"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the reference's code sums float32 in another order"""


@cache
def io() -> dict[str, Tensor]:
    return load_file(FOLDER / "io.safetensors")


@cache
def meta() -> dict[str, Any]:
    return json.loads((FOLDER / "meta.json").read_text())


@cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.from_vocab(FOLDER / "tokenizer" / "vocab.txt")


def language(name: str) -> FrozenLanguage:
    from transformers import OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

    settings = json.loads((FOLDER / f"{name}_config.json").read_text())
    if name == "opt":
        model: Any = OPTForCausalLM(OPTConfig(**settings))
    else:
        sizes = T5Config(**settings)
        sizes.dense_act_fn = settings["dense_act_fn"]  # the class makes gelu_new of it, LAVIS sets it anew
        model = T5ForConditionalGeneration(sizes)
    return FrozenLanguage(model, LanguageConfig(source=name))


def build(name: str) -> Blip2:
    """A model of ours with the reference's weights, without dropout."""
    sizes, state = meta(), load_file(FOLDER / f"{name}.safetensors")
    own = VisionConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        width=sizes["vision_width"],
        depth=sizes["vision_depth"],
        num_heads=sizes["vision_heads"],
        mlp_ratio=sizes["vision_mlp_ratio"],
        final_norm=False,
    )
    qformer = qformer_from_state(state, num_heads=sizes["qformer_heads"])
    assert (qformer.num_queries, qformer.cross_attention_every) == (
        sizes["num_query_tokens"],
        sizes["cross_attention_freq"],
    )
    llm = None if name == "stage1" else language(name)
    config = Blip2Config(
        vision=TowerConfig(source="own", own=own),
        qformer=QFormerConfig(**{**qformer.__dict__, "dropout": 0.0}),
        matches=name == "stage1",
        embed_dim=state["vision_proj.weight"].shape[0] if name == "stage1" else 256,
        language=None if llm is None else llm.config,
    )
    model = Blip2(config, make_tower(config.vision), llm)
    ignored = load_lavis_state(model, state, source=name)
    assert all(key.endswith("position_ids") for key in ignored)
    return model.eval()


def captions(length: int | None = 32) -> TokenBatch:
    """The reference pads to a fixed length; losses do not depend on it."""
    tokens = tokenizer().encode(meta()["captions"])
    missing = 0 if length is None else length - tokens.input_ids.shape[1]
    pad = torch.nn.functional.pad
    return TokenBatch(pad(tokens.input_ids, (0, missing)), pad(tokens.attention_mask, (0, missing), value=False))


def gradients(model: Blip2, prefix: str, found: dict[str, Tensor | None]) -> None:
    prefix = f"{prefix}.grad."
    assert {prefix + name for name in found} == {name for name in io() if name.startswith(prefix)}
    for name, value in found.items():
        torch.testing.assert_close(value, io()[prefix + name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_frozen_features() -> None:
    torch.testing.assert_close(build("stage1").encode_image(io()["image"]), io()["vision.embeds"], **CLOSE)


@pytest.mark.parametrize("length", [32, None], ids=["padded-to-32", "padded-to-need"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_stage_1(length: int | None, checkpointing: bool) -> None:
    model = build("stage1")
    step = Blip2Stage1(model, Stage1Config(), dec_id=tokenizer().dec_id).train()
    model.gradient_checkpointing_enable(checkpointing)
    negatives = Negatives(
        io()["stage1.neg_image_for_text"],
        io()["stage1.neg_text_for_image"],
        torch.ones(len(meta()["captions"]), dtype=torch.bool),
    )
    losses = step(model.encode_image(io()["image"]), captions(length), negatives=negatives)
    for name in ("itc", "itm", "itg"):
        torch.testing.assert_close(losses[f"loss_{name}"], io()[f"stage1.loss_{name}"], **CLOSE)
    losses["loss"].backward()
    width = model.config.qformer.width
    blocks = model.qformer.qformer_blocks
    gradients(
        model,
        "stage1",
        {
            "query_tokens": model.qformer.queries.grad,
            "temp": model.temperature.grad,
            "Qformer.bert.encoder.layer.0.crossattention.self.key.weight": blocks[
                0
            ].cross_attention.key_value.weight.grad[:width],
            "Qformer.bert.encoder.layer.1.output_query.dense.weight": blocks[
                1
            ].query_feed_forward.output.weight.grad,
        },
    )
    assert all(p.grad is None for p in model.vision.parameters())


def test_stage_1_with_image_ids() -> None:
    model = build("stage1")
    step = Blip2Stage1(model, Stage1Config(use_image_ids=True), dec_id=tokenizer().dec_id)
    negatives = Negatives(
        io()["retrieval.neg_image_for_text"],
        io()["retrieval.neg_text_for_image"],
        torch.ones(len(meta()["captions"]), dtype=torch.bool),
    )
    losses = step(model.encode_image(io()["image"]), captions(), io()["retrieval.image_id"], negatives=negatives)
    for name in ("itc", "itm"):
        torch.testing.assert_close(losses[f"loss_{name}"], io()[f"retrieval.loss_{name}"], **CLOSE)


@torch.no_grad()
def test_matching_and_features() -> None:
    model, text = build("stage1"), captions(None)
    memory = model.remember(model.encode_image(io()["image"]))
    torch.testing.assert_close(
        model.match(text.input_ids, text.attention_mask, memory), io()["itm.logits"], **CLOSE
    )
    queries = model.read_image(memory)
    torch.testing.assert_close(queries, io()["features.image_embeds"], **CLOSE)
    images, texts = model.image_features(queries), model.text_features(text.input_ids, text.attention_mask)
    torch.testing.assert_close(images, io()["features.image_embeds_proj"], **CLOSE)
    torch.testing.assert_close(texts, io()["features.text_embeds_proj"][:, 0], **CLOSE)
    torch.testing.assert_close(best_query(images, texts).diagonal()[:, None], io()["itc.similarity"], **CLOSE)
    pairs = model.qformer.read_pair(text.input_ids, text.attention_mask, memory)
    torch.testing.assert_close(pairs, io()["features.multimodal_embeds"], **CLOSE)
    real = text.attention_mask
    hidden = model.qformer.read_text(text.input_ids, real)
    torch.testing.assert_close(hidden[real], io()["features.text_embeds"][:, : real.shape[1]][real], **CLOSE)


@torch.no_grad()
def test_captions_of_the_qformer() -> None:
    expected, words = io()["stage1.caption_greedy_ids"], tokenizer()
    model = build("stage1")

    def written(rows: slice) -> Tensor:
        memory = model.remember(model.encode_image(io()["image"][rows]))
        prompt = torch.full((memory.batch_size, 1), words.dec_id)
        config = DecodeConfig(max_new_tokens=expected.shape[1] - 1)
        decoded = decode(
            QFormerStepper(model.qformer, memory), prompt, None, config, eos_ids=words.sep_id, pad_id=words.pad_id
        )
        return decoded.with_prompts(prompt, pad_id=words.pad_id)

    ids = written(slice(None))
    assert torch.equal(ids, expected[:, : ids.shape[1]])
    for row in range(len(ids)):
        alone = written(slice(row, row + 1))[0]
        assert torch.equal(alone, ids[row, : len(alone)])


def test_stage_2_with_a_decoder() -> None:
    model, mask = build("opt"), io()["opt.attention_mask"].bool()
    scored = mask.clone()
    scored[:, : meta()["opt.prompt_length"]] = False
    text = LanguageBatch(io()["opt.input_ids"], mask, scored, scored)
    embeds = model.encode_image(io()["image"])
    losses = Blip2Stage2(model, eos_id=2).train()(embeds, text)
    torch.testing.assert_close(losses["loss"], io()["opt.loss"], **CLOSE)
    losses["loss"].backward()
    found = {"opt_proj.weight": model.language_proj.weight.grad, "query_tokens": model.qformer.queries.grad}
    gradients(model, "opt", found)
    assert all(p.grad is None for p in model.llm.parameters())
    with torch.no_grad():
        soft = model.soft_prompt(model.remember(embeds))
    torch.testing.assert_close(soft, io()["opt.soft_prompt"], **CLOSE)


@torch.no_grad()
def test_ids_of_a_decoder() -> None:
    model = build("opt")
    soft = model.soft_prompt(model.remember(model.encode_image(io()["image"])))
    prompt = io()["opt.prompt_ids"].expand(len(soft), -1)
    stepper = CausalStepper(model.llm, soft)
    first = stepper.start(prompt, torch.ones_like(prompt, dtype=torch.bool))
    torch.testing.assert_close(first, io()["opt.first_logits"], **CLOSE)
    decoded = decode(
        CausalStepper(model.llm, soft), prompt, None, DecodeConfig(max_new_tokens=10), eos_ids=[], pad_id=1
    )
    assert torch.equal(decoded.ids, io()["opt.greedy_ids_10_no_stop"])


def prefix_of_t5() -> LanguageBatch:
    mask = io()["t5.input_mask"].bool()
    return LanguageBatch(io()["t5.input_ids"], mask, mask, mask)


def test_stage_2_with_an_encoder_decoder() -> None:
    model, mask = build("t5"), io()["t5.output_mask"].bool()
    text = LanguageBatch(io()["t5.output_ids"], mask, mask, mask)
    losses = Blip2Stage2(model, eos_id=1)(model.encode_image(io()["image"]), text, prefix=prefix_of_t5())
    torch.testing.assert_close(losses["loss"], io()["t5.loss"], **CLOSE)
    losses["loss"].backward()
    gradients(model, "t5", {"t5_proj.weight": model.language_proj.weight.grad})


@torch.no_grad()
@pytest.mark.parametrize(("name", "beams"), [("greedy", 1), ("beam3", 3)])
def test_ids_of_an_encoder_decoder(name: str, beams: int) -> None:
    model, prefix, expected = build("t5"), prefix_of_t5(), io()[f"t5.{name}_ids"]
    soft = model.soft_prompt(model.remember(model.encode_image(io()["image"])))
    states, mask = model.llm.encode(soft, prefix.input_ids, prefix.attention_mask)
    start = torch.full((len(soft), 1), model.llm.start_id)
    config = DecodeConfig(num_beams=beams, max_new_tokens=expected.shape[1] - 1)
    decoded = decode(Seq2SeqStepper(model.llm, states, mask), start, None, config, eos_ids=1, pad_id=0)
    ids = decoded.with_prompts(start, pad_id=0)
    assert torch.equal(ids, expected[:, : ids.shape[1]])


def full_size() -> dict[str, Any]:
    """Names and shapes of the real checkpoint, and which of them are trained."""
    path = ROOT / "blip2_full_size_keys.json"
    if not path.exists():
        path = Path(__file__).parent / "blip2_full_size_keys.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("part", ["whole", "trained"])
def test_every_key_of_the_real_file_has_its_place(part: str) -> None:
    """The whole file brings the tower, whose sizes are read off it; the published one the trained part alone."""
    shapes = full_size()["stage1_vitg_224"]
    names = shapes if part == "whole" else full_size()["stage1_vitg_224.trainable"]
    state = {name: torch.empty(shapes[name], device="meta") for name in names}
    qformer = qformer_from_state(state)
    assert qformer == QFormerConfig(vocab_size=qformer.vocab_size)
    tower = _vision(state, None, qformer.memory_width, FOLDER)
    assert (tower.kind == "own") == (part == "whole")
    with torch.device("meta"):
        model = Blip2(Blip2Config(vision=tower, qformer=qformer), make_tower(tower, pretrained=False))
    assert model.vision.depth == 39
    ignored = load_lavis_state(model, state, source="stage1_vitg_224")
    assert all(name.endswith("position_ids") for name in ignored)


def test_trained_parameters_of_the_real_sizes() -> None:
    shapes = full_size()
    trained = shapes["stage1_vitg_224.trainable"]
    vocab = shapes["stage1_vitg_224"]["Qformer.bert.embeddings.word_embeddings.weight"][0]
    own = VisionConfig(patch_size=14, width=1408, depth=39, num_heads=16, mlp_ratio=6144 / 1408, final_norm=False)
    config = Blip2Config(vision=TowerConfig(source="own", own=own), qformer=QFormerConfig(vocab_size=vocab))
    with torch.device("meta"):
        model = Blip2(config, make_tower(config.vision))
    assert model.num_trained() == sum(math.prod(shapes["stage1_vitg_224"][key]) for key in trained) == 186_704_701
    # With OPT-2.7B's projection of 768 to 2,560 it is what the paper counts: 188M.
    assert model.num_trained() + 2560 * 769 == 188_673_341
