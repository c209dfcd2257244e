"""One pre-training step, the captioner's loss and the matching model against the reference's values."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenBlip

from openblip.checkpoints.blip import momentum_state
from openblip.core.tokenizer import TokenBatch
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.matching import Negatives
from openblip.objectives.pretraining import BlipPretraining

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the reference's code sums float32 in another order"""


def fixed_length(golden: GoldenBlip, texts: list[str], length: int, first: str = "cls") -> TokenBatch:
    """Pad to the reference's fixed length, to show that padding to need changes nothing, and the reverse."""
    tokens = golden.tokenizer.encode(texts, first=first, max_length=length)  # type: ignore[arg-type]
    missing = length - tokens.input_ids.shape[1]
    return TokenBatch(
        torch.nn.functional.pad(tokens.input_ids, (0, missing), value=golden.tokenizer.pad_id),
        torch.nn.functional.pad(tokens.attention_mask, (0, missing), value=False),
    )


def step_of(golden: GoldenBlip, name: str, config: ObjectiveConfig) -> BlipPretraining:
    model = golden.model(name)
    tokenizer = golden.tokenizer
    step = BlipPretraining(model, config, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id)
    momentum_copy, queue = momentum_state(golden.state(name), model.config)
    assert step.momentum_copy is not None
    assert step.queue is not None
    step.momentum_copy.load_state_dict(momentum_copy)
    step.queue.load_state_dict(queue)
    return step.train()  # the model has no dropout; training mode moves momentum and queue


@pytest.mark.parametrize("length", [30, None], ids=["padded-to-30", "padded-to-need"])
def test_pretraining_step_gives_the_reference_losses_gradients_queue_and_momentum(
    golden: GoldenBlip, length: int | None
) -> None:
    io, captions = golden.io, golden.meta["captions"]
    queue_size = golden.state("pretrain")["image_queue"].shape[1]
    step = step_of(golden, "pretrain", ObjectiveConfig(queue_size=queue_size))
    text = golden.tokenizer.encode(captions) if length is None else fixed_length(golden, captions, length)
    negatives = Negatives(
        io["pretrain.neg_image_for_text"],
        io["pretrain.neg_text_for_image"],
        torch.ones(len(captions), dtype=torch.bool),
    )
    losses = step(io["image"], text, negatives=negatives)
    for name in ("itc", "itm", "lm"):
        torch.testing.assert_close(losses[f"loss_{name}"], io[f"pretrain.loss_{name}"], **CLOSE)
    losses["loss"].backward()
    model, grad = step.model, "pretrain.grad."
    width = model.config.text.width
    pairs = {
        "temp": model.temperature.grad,
        "visual_encoder.blocks.0.attn.qkv.weight": model.vision.vit.blocks[0].attn.qkv.weight.grad,
        "text_encoder.encoder.layer.0.attention.self.query.weight": model.encoder.text_blocks[
            0
        ].self_attention.qkv.weight.grad[:width],
        "text_encoder.encoder.layer.0.crossattention.self.key.weight": model.encoder.text_blocks[
            0
        ].cross_attention.key_value.weight.grad[:width],
        "text_decoder.bert.encoder.layer.0.attention.self.query.weight": model.decoder.transformer.text_blocks[
            0
        ].self_attention.qkv.weight.grad[:width],
    }
    assert {grad + name for name in pairs} == {name for name in io if name.startswith(grad)}
    for name, value in pairs.items():
        torch.testing.assert_close(value, io[grad + name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(step.queue.images.T, io["pretrain.image_queue_after"], **CLOSE)
    torch.testing.assert_close(step.queue.texts.T, io["pretrain.text_queue_after"], **CLOSE)
    torch.testing.assert_close(
        step.momentum_copy.vision.vit.cls_token, io["pretrain.momentum.visual_encoder_m.cls_token"], **CLOSE
    )


def test_caption_loss_and_features(golden: GoldenBlip) -> None:
    io, prompt = golden.io, "a picture of "
    model, tokenizer = golden.model("caption"), golden.tokenizer
    torch.testing.assert_close(model.encode_image(io["image"]), io["caption.image_embeds"], **CLOSE)
    step = BlipPretraining(
        model, ObjectiveConfig(objectives=("lm",)), enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id
    )
    prompt_length = tokenizer.encode([prompt], end=False).input_ids.shape[1]
    text = tokenizer.encode([prompt + caption for caption in golden.meta["captions"]], first="dec", max_length=40)
    losses = step(io["image"], text, prompt_length=prompt_length)
    torch.testing.assert_close(losses["loss_lm"], io["caption.loss_lm"], **CLOSE)


def test_matching_logits_and_similarity_with_the_first_token_of_the_reference_demo(
    golden: GoldenBlip,
) -> None:
    io = golden.io
    model, tokenizer = golden.model("itm"), golden.tokenizer
    image_embeds = model.encode_image(io["image"])
    memory = model.remember(image_embeds)
    text = tokenizer.encode(golden.meta["captions"], first="cls", max_length=35)
    logits = model.match(text.input_ids, text.attention_mask, memory)
    torch.testing.assert_close(logits, io["itm.logits"], **CLOSE)
    ours = tokenizer.encode(golden.meta["captions"], first="enc", max_length=35)
    assert not torch.allclose(model.match(ours.input_ids, ours.attention_mask, memory), logits, atol=1e-3)
    similarity = model.image_features(image_embeds) @ model.text_features(text.input_ids, text.attention_mask).T
    torch.testing.assert_close(similarity, io["itm.similarity"], **CLOSE)


def test_retrieval_step_with_image_ids(golden: GoldenBlip) -> None:
    io, captions = golden.io, golden.meta["captions"]
    size = golden.state("retrieval")["image_queue"].shape[1]
    config = ObjectiveConfig(objectives=("itc", "itm"), queue_size=size, use_image_ids=True)
    step = step_of(golden, "retrieval", config)
    picked = io["retrieval.negatives_picked"]
    pairs = len(captions)
    negatives = Negatives(picked[:pairs], picked[pairs:], torch.ones(pairs, dtype=torch.bool))
    text = golden.tokenizer.encode(captions, max_length=35)
    losses = step(io["image"], text, io["retrieval.idx"], negatives=negatives)
    torch.testing.assert_close(losses["loss_itc"], io["retrieval.loss_itc"], **CLOSE)
    torch.testing.assert_close(losses["loss_itm"], io["retrieval.loss_itm"], **CLOSE)
