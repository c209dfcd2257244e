"""From batches to losses: prompts, depths of layers, and means over tokens."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import small
import torch

from openblip.models.blip import Blip, blip_config
from openblip.objectives.configs import ObjectiveConfig
from openblip.objectives.pretraining import BlipPretraining
from openblip.tasks.pairs import BlipStep, prepare_pairs
from openblip.tasks.step import PairBatch
from openblip.training.config import TrainConfig
from openblip.training.optim import make_optimizer


def make_step(model: Blip, *objectives: str) -> BlipStep:
    words = small.tokenizer()
    config = ObjectiveConfig(objectives=objectives, queue_size=4)
    objective = BlipPretraining(model, config, enc_id=words.enc_id, dec_id=words.dec_id)
    return BlipStep(objective).train()


def part(batch: PairBatch, rows: slice) -> PairBatch:
    """Some rows, padded to what they need."""
    mask = batch.text.attention_mask[rows]
    width = int(mask.sum(1).max())
    text = replace(batch.text, input_ids=batch.text.input_ids[rows, :width], attention_mask=mask[:, :width])
    return PairBatch(batch.images[rows], text, batch.image_ids[rows], batch.prompt_length)


def test_prepare_puts_the_prompt_first_and_cuts() -> None:
    words = small.tokenizer()
    batch = small.batch([0, 1, 2])
    plain = prepare_pairs(words, max_length=30)(batch)
    prompted = prepare_pairs(words, max_length=30, prompt="a red ")(batch)
    assert [words.decode(row) for row in plain.text.input_ids] == batch.texts
    assert [words.decode(row) for row in prompted.text.input_ids] == ["a red " + t for t in batch.texts]
    cut = prepare_pairs(words, max_length=4)(batch)
    assert cut.text.input_ids.shape[1] == 4
    assert plain.images.equal(batch.images)
    assert plain.image_ids.tolist() == [0, 1, 2]
    assert len(plain) == 3


@pytest.mark.parametrize("prompt", ["", "a red "])
@pytest.mark.parametrize("cuts", [(2, 2, 2), (1, 5), (5, 1)])
def test_micro_batches_equal_the_whole_batch(cuts: tuple[int, ...], prompt: str) -> None:
    """The mean of their LM losses and gradients is that over all tokens, though they hold unequally many."""
    words = small.tokenizer()
    batch = prepare_pairs(words, max_length=40, prompt=prompt)(small.batch(list(range(6))))
    model = small.model().part(encoder=False, decoder=True)
    whole, parts = (make_step(copy.deepcopy(model), "lm") for _ in range(2))
    expected = whole(batch)["loss_lm"]
    expected.backward()
    starts = [sum(cuts[:i]) for i in range(len(cuts))]
    micro = [part(batch, slice(start, start + cut)) for start, cut in zip(starts, cuts, strict=True)]
    parts.count_step(micro)
    losses = [parts(one)["loss_lm"] / len(cuts) for one in micro]
    sum(losses).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(sum(losses), expected, rtol=1e-5, atol=1e-6)
    for (name, ours), theirs in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-6, msg=name)
    # The same micro-batches, each divided by its own tokens, give something else.
    plain = sum(make_step(model, "lm")(one)["loss_lm"] for one in micro) / len(cuts)
    assert abs(float((plain - expected).detach())) > 1e-3


def test_counting_one_batch_changes_nothing() -> None:
    batch = prepare_pairs(small.tokenizer(), max_length=40)(small.batch([0, 1, 2]))
    step = make_step(small.model(), "lm")
    before = step(batch)["loss"]
    step.count_step([batch])
    assert step(batch)["loss"].equal(before)


def test_layers_are_numbered_from_the_bottom_of_each_tower_to_one_top() -> None:
    config = blip_config("nano", vocab_size=small.tokenizer().vocab_size, image_size=32)
    model = Blip(replace(config, vision=replace(config.vision, depth=4), text=replace(config.text, depth=2)))
    step = make_step(model, "itc", "itm", "lm")
    ids = step.layer_ids()
    trained = {name for name, parameter in step.named_parameters() if parameter.requires_grad}
    assert trained <= ids.keys()

    def numbers(text: str) -> set[int]:
        found = {ids[name] for name in trained if name.startswith(f"objective.model.{text}")}
        assert found, text
        return found

    assert numbers("vision.vit.patch_embed") == numbers("vision.vit.pos_embed") == {0}
    assert [numbers(f"vision.vit.blocks.{i}.") for i in range(4)] == [{1}, {2}, {3}, {4}]
    assert numbers("text_encoder.embeddings") == {2}
    assert [numbers(f"text_encoder.blocks.{i}.") for i in range(2)] == [{3}, {4}]
    assert [numbers(f"text_decoder.transformer.blocks.{i}.") for i in range(2)] == [{3}, {4}]
    for top in ("vision.vit.norm", "text_decoder.head", "vision_proj", "text_proj", "itm_head", "temperature"):
        assert numbers(top) == {5}


def test_layerwise_decay_scales_the_rate_by_depth() -> None:
    step = make_step(small.model(), "itc", "itm", "lm")
    optimizer = make_optimizer(step, TrainConfig(layer_decay=0.5))
    lr_scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    ids = step.layer_ids()
    top = max(ids.values())
    for name, parameter in step.named_parameters():
        if parameter.requires_grad:
            assert lr_scales[id(parameter)] == 0.5 ** (top - ids[name]), name
    assert len(set(lr_scales.values())) == 4, "embeddings, two blocks, the top"
