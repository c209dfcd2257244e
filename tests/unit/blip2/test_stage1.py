"""Stage 1 and stage 2 as losses: one row, one image, frozen parts, what a split keeps, no wait for the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from small_blip2 import PIXELS, TEXTS, Kind, images, model, tokenizer, write_language
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageBatch, LanguageTokenizer
from openblip.core.tokenizer import TokenBatch
from openblip.models import blip2
from openblip.models.blip2 import best_query
from openblip.objectives.blip2 import Blip2Stage1, Blip2Stage2, pairs_read, split_prefix
from openblip.objectives.configs import Stage1Config
from openblip.objectives.matching import Negatives, draw_negatives
from openblip.tasks.captioning import LanguagePairBatch, Stage2Step
from openblip.tasks.step import PairBatch

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""the same sums of float32 in another order"""


def stage1(**settings: Any) -> Blip2Stage1:
    made = model(qformer={"dropout": 0.0})
    return Blip2Stage1(made, Stage1Config(**settings), dec_id=tokenizer().dec_id)


def text(count: int = 3) -> TokenBatch:
    return tokenizer().encode(TEXTS[:count])


def losses(step: Blip2Stage1, count: int = 3, ids: Tensor | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return step(step.model.encode_image(images(count)), text(count), ids)


def test_a_batch_of_one_has_no_negatives_and_finite_losses() -> None:
    found = losses(stage1(label_smoothing=0.0), 1)
    assert found["loss_itc"].item() == pytest.approx(0.0, abs=1e-6)
    assert all(torch.isfinite(value) for value in found.values())
    found["loss"].backward()


def test_all_rows_of_one_image() -> None:
    """With image ids nothing is left to draw: ITM is the positives alone, ITC spreads evenly over all."""
    step = stage1(use_image_ids=True, label_smoothing=0.0)
    found = losses(step, 3, torch.tensor([7, 7, 7]))
    embeds, words = step.model.encode_image(images(3)), text(3)
    logits = step.model.match(words.input_ids, words.attention_mask, step.model.remember(embeds))
    expected = torch.nn.functional.cross_entropy(logits, torch.ones(3, dtype=torch.int64))
    torch.testing.assert_close(found["loss_itm"], expected, **CLOSE)
    features = step.model.image_features(step.model.read_image(step.model.remember(embeds)))
    similar = best_query(features, step.model.text_features(words.input_ids, words.attention_mask))
    similar = similar / step.model.temperature
    expected = -(similar.log_softmax(1).mean() + similar.T.log_softmax(1).mean()) / 2
    torch.testing.assert_close(found["loss_itc"], expected, **CLOSE)


class Largest(TorchDispatchMode):
    """Notes how many values the largest result of an operation has."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize("at_once", [0, 1, 2, 7, 9])
def test_the_best_query_is_that_of_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    torch.manual_seed(0)
    queries, texts = torch.randn(7, 4, 16, requires_grad=True), torch.randn(5, 16, requires_grad=True)
    plain = torch.einsum("bqe,re->brq", queries, texts).amax(-1)
    wanted = (plain, *torch.autograd.grad(plain.square().sum(), (queries, texts)))
    monkeypatch.setattr(blip2, "_MOST_BYTES", at_once * 4 * 5 * 4)
    found = blip2.best_query(queries, texts)
    for one, other in zip(
        (found, *torch.autograd.grad(found.square().sum(), (queries, texts))), wanted, strict=True
    ):
        torch.testing.assert_close(one, other, **CLOSE)
    narrow = queries[:, :, :2].detach(), texts[:, :2].detach()
    with Largest() as largest:
        blip2.best_query(*narrow)
    assert largest.values == max(min(max(at_once, 1), 7) * 4 * 5, 7 * 5), (
        "more than those of a chunk, or the result"
    )


def test_objectives_left_out_are_not_computed() -> None:
    assert set(losses(stage1(objectives=("itg",)))) == {"loss", "loss_itg"}
    whole = losses(stage1())
    for names in (("itc",), ("itc", "itg")):
        part = losses(stage1(objectives=names))
        for name in names:
            torch.testing.assert_close(part[f"loss_{name}"], whole[f"loss_{name}"])
        torch.testing.assert_close(part["loss"], sum(part[f"loss_{name}"] for name in names))
    for names, words in (((), "no objective"), (("itm",), "name both"), (("itx",), 'did you mean "it')):
        with pytest.raises(UserError, match=words):
            Stage1Config(objectives=names)


def test_the_share_of_hard_negatives_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawing itself is tested with the objectives; here that it is reported."""
    asked = []

    def draw(*similarities: Tensor | None, **how: float) -> Negatives:
        asked.append((how["hard_share"], how["floor"]))
        return draw_negatives(*similarities, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("openblip.objectives.blip2.draw_negatives", draw)
    for settings in ({}, {"hard_share": 0.2, "negative_floor": 0.0}):
        losses(stage1(**settings))
    assert asked == [(1.0, 1e-4), (0.2, 0.0)]
    with pytest.raises(UserError, match="hard_share is a share between 0 and 1, not 2"):
        Stage1Config(hard_share=2)


def test_itm_may_read_a_part_of_the_pairs() -> None:
    """The first pairs, with negatives from the whole batch; ITC and ITG stay as they are."""
    step = stage1(itm_share=0.34)
    embeds, words = step.model.encode_image(images(3)), text(3)
    drawn = Negatives(torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]), torch.ones(3, dtype=torch.bool))
    found = step(embeds, words, negatives=drawn)
    memory = step.model.remember(embeds).select(torch.tensor([0, 2, 0]))
    rows = torch.tensor([0, 0, 1])
    logits = step.model.match(words.input_ids[rows], words.attention_mask[rows], memory)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0, 0]))
    torch.testing.assert_close(found["loss_itm"], expected, **CLOSE)
    whole = stage1()(embeds, words, negatives=drawn)
    for name in ("loss_itc", "loss_itg"):
        torch.testing.assert_close(found[name], whole[name], **CLOSE)
    assert not torch.isclose(found["loss_itm"], whole["loss_itm"])
    for share in (0, 1.5):
        with pytest.raises(UserError, match="itm_share is a share above 0 and at most 1"):
            Stage1Config(itm_share=share)


def test_itg_may_read_a_part_of_the_pairs() -> None:
    """The first pairs, by the mean over their tokens; ITC and ITM stay as they are."""
    step = stage1(itg_share=0.67)
    embeds, words = step.model.encode_image(images(3)), text(3)
    drawn = Negatives(torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]), torch.ones(3, dtype=torch.bool))
    found, whole = step(embeds, words, negatives=drawn), stage1()(embeds, words, negatives=drawn)
    first = stage1(objectives=("itg",))(embeds[:2], TokenBatch(words.input_ids[:2], words.attention_mask[:2]))
    torch.testing.assert_close(found["loss_itg"], first["loss_itg"], **CLOSE)
    assert not torch.isclose(found["loss_itg"], whole["loss_itg"])
    for name in ("loss_itc", "loss_itm"):
        torch.testing.assert_close(found[name], whole[name], **CLOSE)
    with pytest.raises(UserError, match="itg_share is a share above 0 and at most 1, not 2"):
        Stage1Config(itg_share=2)


def test_what_itg_does_not_read_is_not_counted() -> None:
    """The loss's divisor is the tokens of the pairs that ITG reads."""
    words = text(3)
    batch = PairBatch(images(3), words, torch.arange(3), num_written=pairs_read(3, 0.34))
    assert batch.num_scored == int(words.attention_mask[0, 1:].sum())
    assert replace(batch, num_written=None).num_scored == int(words.attention_mask[:, 1:].sum())


def test_only_the_frozen_parts_are_without_gradient() -> None:
    step = stage1()
    losses(step)["loss"].backward()
    without = {name for name, p in step.model.named_parameters() if p.grad is None}
    assert without == step.model.frozen_parameter_names()


class NoWaiting(TorchDispatchMode):
    """Fails on every operation whose result the host would have to wait for on an accelerator."""

    WAITING = (
        "_local_scalar_dense",
        "nonzero",
        "is_nonzero",
        "equal",
        "masked_select",
        "unique",
        "_unique2",
        "lift_fresh",
    )  # the last: numbers of Python's that are copied to the device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"the step waits for the device in {name}"
        indices = args[1] if name in ("index", "index_put_", "index_put") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), "an index by a mask waits"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ids", [None, torch.tensor([1, 1, 2])])
def test_the_device_is_not_waited_for(ids: Tensor | None) -> None:
    step, words = stage1(use_image_ids=ids is not None), text()
    embeds = step.model.encode_image(images())
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        embeds.sum().item()
    with NoWaiting():
        step(embeds, words, ids)["loss"].backward()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_language(tmp_path_factory.mktemp(kind), kind) for kind in get_args(Kind)}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_device_is_not_waited_for_in_stage_2(folders: dict[str, Path], kind: str, checkpointing: bool) -> None:
    """transformers looks whether a mask hides anything, unless it is given whole."""
    made = model(language=folders[kind], matches=False, qformer={"vocab_size": None})
    made.gradient_checkpointing_enable(checkpointing)
    language_tokenizer = LanguageTokenizer.load(folders[kind])
    step = Stage2Step(Blip2Stage2(made, eos_id=language_tokenizer.eos_id)).train()
    text = language_tokenizer.texts(TEXTS[:3], prompts=["a photo of", "", "the"])
    images = torch.randint(0, 256, (3, 3, PIXELS, PIXELS), dtype=torch.uint8)
    prefix = (
        language_tokenizer.prompts(["a photo of", "what", "the"], side="right", end=True) if kind == "t5" else None
    )
    batch = LanguagePairBatch(images, text, torch.arange(3), prefix=prefix)
    step.count_step([batch])
    with NoWaiting():
        step(batch)["loss"].backward()
    assert made.qformer.queries.grad is not None


class Moves(TorchFunctionMode):
    """Counts how often tensors are moved, and fails where the host would wait for that."""

    number = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.to:
            assert (kwargs or {}).get("non_blocking"), "a copy waits for the device"
            self.number += 1
        return func(*args, **(kwargs or {}))


def test_batches_move_without_waiting(folders: dict[str, Path]) -> None:
    language_tokenizer = LanguageTokenizer.load(folders["t5"])
    prefix, rest = language_tokenizer.prompts(["the"], side="right"), language_tokenizer.texts(["two dogs"])
    batch = LanguagePairBatch(torch.zeros(1, 3, 8, 8), rest, torch.arange(1), questions=text(1), prefix=prefix)
    with Moves() as moves:
        moved = batch.to("cpu", non_blocking=True)
    assert moves.number == 2 + 2 + 5 + 5
    assert torch.equal(moved.questions.input_ids, text(1).input_ids)  # type: ignore[union-attr]
    assert torch.equal(moved.prefix.attention_mask, prefix.attention_mask)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_stage_2_does_not_depend_on_padding(folders: dict[str, Path], kind: str) -> None:
    made = model(language=folders[kind], matches=False, qformer={"vocab_size": None})
    language_tokenizer = LanguageTokenizer.load(folders[kind])
    step = Blip2Stage2(made, eos_id=language_tokenizer.eos_id)
    batch = language_tokenizer.texts(TEXTS[:3])
    pad = torch.nn.functional.pad
    wide = LanguageBatch(
        pad(batch.input_ids, (0, 4), value=language_tokenizer.pad_id),
        *(pad(mask, (0, 4), value=False) for mask in (batch.attention_mask, batch.scored, batch.starts)),
    )
    embeds = made.encode_image(images())
    prefix = language_tokenizer.prompts(["a photo of", "what is", "the"], side="right", end=True)
    found = [step(embeds, b, prefix=prefix)["loss"] for b in (batch, wide)]
    torch.testing.assert_close(found[0], found[1], **CLOSE)
    found[0].backward()
    assert all(p.grad is None for p in made.llm.parameters())
    assert made.language_proj.weight.grad is not None
    assert made.qformer.queries.grad is not None


def test_a_prompt_carries_no_loss(folders: dict[str, Path]) -> None:
    made = model(language=folders["opt"], matches=False, qformer={"vocab_size": None})
    language_tokenizer = LanguageTokenizer.load(folders["opt"])
    batch = language_tokenizer.texts(["a red bus"], prompts=["a photo of"])
    with torch.no_grad():
        embeds = made.encode_image(images(1))
        loss = Blip2Stage2(made, eos_id=language_tokenizer.eos_id)(embeds, batch)["loss"]
        logits = made.llm.decoder_logits(
            made.soft_prompt(made.remember(embeds)), batch.input_ids, batch.attention_mask
        )
    scored = batch.scored[0]
    picked = logits[0, :-1].log_softmax(-1).gather(1, batch.input_ids[0, :, None])[:, 0]
    torch.testing.assert_close(loss, -picked[scored].mean(), **CLOSE)


def test_a_split_text_is_whole_again(folders: dict[str, Path]) -> None:
    language_tokenizer = LanguageTokenizer.load(folders["t5"])
    batch = language_tokenizer.texts(TEXTS)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        prefix, rest = split_prefix(batch, eos_id=language_tokenizer.eos_id)
        for row in range(len(TEXTS)):
            before = prefix.input_ids[row][prefix.attention_mask[row]].tolist()
            after = rest.input_ids[row][rest.attention_mask[row]].tolist()
            assert before[-1] == language_tokenizer.eos_id
            assert before[:-1] + after == batch.input_ids[row][batch.attention_mask[row]].tolist()
            assert batch.starts[row, len(before) - 1]  # a word begins where the rest does
            seen.add((row, len(before)))
    assert len({length for row, length in seen if row == 5}) > 5  # every word of the longest, sooner or later
