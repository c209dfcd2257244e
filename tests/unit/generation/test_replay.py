"""Recorded steps write what computed steps write: texts, likelihoods, beams and samples, whatever is padded.

A CPU has no CUDA graphs: `tests.recorder` records operations and computes them again on the same memory.
`tests/gpu` does the same with graphs.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.generation.decode import DecodeConfig, Decoded, decode, recorded
from openblip.models import replay
from openblip.models.language import FrozenLanguage
from openblip.models.language_fixed import ReplayableLanguage
from openblip.models.layers import ImageMemory
from openblip.models.replay import FixedStates, ReplayedStepper, rounded_room
from openblip.models.stepper_fixed import ReplayableDecoder
from tests.recorder import Recorder
from tests.replay_models import PADDED, PROMPTS, blip, language

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "as transformers": {"num_beams": 3, "beam_scoring": "transformers", "num_sequences": 2},
    "rules": {"num_beams": 2, "repetition_penalty": 1.3, "no_repeat_ngram": 2},
    "samples": {"sample": True, "num_sequences": 2, "temperature": 1.5},
}
KINDS = ["blip", "opt", "qwen2", "gpt2", "gemma3", "gpt_neox"]
"""BLIP's decoder, and language models: learned positions, grouped queries, a fused projection, windows"""


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(replay, "record", made)
    return made


def stepper_of(kind: str, seed: int, rows: int = 3, *, masked: bool = False) -> Any:
    """Before images, or soft prompts, that are drawn by the seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if kind == "blip":
            model = blip()
            seen = torch.randn(rows, 3, *model.config.vision.pixels, generator=generator)
            memory = model.remember(model.encode_image(seen))
            if masked:
                real = torch.arange(memory.keys[0].shape[2]) < torch.tensor([[3], [2], [4]])[:rows]
                memory = ImageMemory(memory.keys, memory.values, real)
            return ReplayableDecoder(model.decoder, memory)
        llm = language(kind)
        return ReplayableLanguage(llm, torch.randn(rows, 4, llm.width, generator=generator))


def write(
    kind: str,
    states: FixedStates | None,
    *,
    padded: bool = False,
    rows: int = 3,
    seed: int = 0,
    tokens: int = 9,
    masked: bool = False,
    **settings: Any,
) -> Decoded:
    config = DecodeConfig(max_new_tokens=tokens, **settings)
    prompts, mask = PROMPTS[:rows], (PADDED if padded else torch.ones_like(PADDED))[:rows]
    stepper = stepper_of(kind, seed, rows, masked=masked)
    # Texts end at different steps, so that rows are dropped from the batch: a sixth of the tokens end one.
    ends = range(40, 40 + stepper.vocab_size // 6)
    return decode(recorded(stepper, states, config), prompts, mask, config, eos_ids=ends, pad_id=0)


def check_same(ours: Decoded, theirs: Decoded) -> None:
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(ours.lengths, theirs.lengths)
    # Attention over masked slots besides: other sums of the same numbers.
    torch.testing.assert_close(ours.token_log_probs, theirs.token_log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_write_the_same(recorder: Recorder, kind: str, padded: bool, settings: str) -> None:
    states, texts = FixedStates(), []
    for seed in (0, 1):  # the second text finds what the first one left
        plain = write(kind, None, padded=padded, seed=seed, **SETTINGS[settings])
        check_same(write(kind, states, padded=padded, seed=seed, **SETTINGS[settings]), plain)
        texts.append(plain.ids.tolist())
    assert texts[0] != texts[1], "the models ignore their input"
    assert recorder.recorded <= 2  # where a text ends at its first token, the others are fewer from the beginning
    assert recorder.replayed > 6


@torch.no_grad()
@pytest.mark.parametrize("kind", ["blip", "gemma3"])
def test_texts_that_end_are_dropped_in_any_order(recorder: Recorder, kind: str) -> None:
    """Rows that change places, are copied and dropped at once, as no search does it."""
    states, generator = FixedStates(), torch.Generator().manual_seed(5)

    def number(below: int, *size: int) -> Tensor:
        return torch.randint(below, size, generator=generator)

    for moves in (True, False):
        for seed in range(4):
            plain = stepper_of(kind, seed)
            ours = ReplayedStepper(stepper_of(kind, seed), states, max_new_tokens=9, moves=moves)
            for one in (plain, ours):
                logits = one.start(PROMPTS, PADDED)
                one.reorder(torch.arange(3).repeat_interleave(2))
            prompts = 3
            for step in range(8):
                if step in (2, 5) and seed:
                    left = torch.randperm(prompts, generator=generator)[: prompts - 1].sort().values
                    prompts = len(left)
                    index = (left[:, None] * 2 + number(2, prompts, 2)).flatten()
                    for one in (plain, ours):
                        one.reorder(index, left)
                for _ in range(int(number(3, 1))):
                    index = (torch.arange(prompts)[:, None] * 2 + number(2, prompts, 2)).flatten()
                    for one in (plain, ours):
                        one.reorder(index)
                token = number(500, 2 * prompts)
                expected, logits = plain.step(token), ours.step(token)
                # Attention over masked slots besides, in weights drawn wide: other sums of the same numbers.
                torch.testing.assert_close(logits, expected, rtol=1e-2, atol=1e-2 * expected.std().item())
    assert recorder.recorded == 2


def test_a_masked_memory_is_read_with_its_mask(recorder: Recorder) -> None:
    states = FixedStates()
    plain, whole = (write("blip", None, masked=masked, num_beams=3) for masked in (True, False))
    check_same(write("blip", states, masked=True, num_beams=3), plain)
    check_same(write("blip", states, masked=False, num_beams=3), whole)
    assert not torch.equal(plain.scores, whole.scores)


def test_other_rows_and_lengths_have_states_of_their_own(recorder: Recorder) -> None:
    states = FixedStates()
    for rows, tokens in ((3, 4), (2, 4), (3, 5), (3, 30)):
        plain = write("qwen2", None, rows=rows, tokens=tokens, min_new_tokens=tokens)
        check_same(write("qwen2", states, rows=rows, tokens=tokens, min_new_tokens=tokens), plain)
    assert recorder.recorded == 3  # four and five tokens have the same room
    assert [rounded_room(n) for n in (1, 16, 17)] == [16, 16, 32]


@pytest.mark.parametrize(("kind", "slots"), [("blip", 3), ("opt", 7)])
@pytest.mark.parametrize("needed", [15, 16, 17])
def test_the_last_slot_is_there(recorder: Recorder, kind: str, slots: int, needed: int) -> None:
    """A prompt in so many slots, and all tokens that are written but the last, which is not read."""
    tokens = needed - slots + 1
    plain = write(kind, None, tokens=tokens, min_new_tokens=tokens)
    check_same(write(kind, states := FixedStates(), tokens=tokens, min_new_tokens=tokens), plain)
    (state,) = states._states.values()
    assert (state.length, state.room) == (needed, 16 if needed <= 16 else 32)


def test_of_many_shapes_those_that_were_used_last_are_kept(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_MOST_STATES", 2)
    for kind in ("blip", "qwen2"):
        states, kept = FixedStates(), []
        for rows in (1, 2, 1, 3, 1, 2):
            write(kind, states, rows=rows, tokens=4, min_new_tokens=4)
            kept.append(weakref.ref(next(reversed(states._states.values()))))
        assert recorder.recorded == 4  # 1, 2, 3, and 2 again
        recorder.recorded = 0
        # What is dropped gives its memory back at once, without Python's collector.
        assert [ref() is not None for ref in kept] == [True, False, True, False, True, True]


def test_without_a_gpu_the_same_steps_are_computed_as_written() -> None:
    for kind in ("blip", "opt"):
        check_same(write(kind, FixedStates(), num_beams=3), write(kind, None, num_beams=3))


def test_what_is_recorded_in_inference_mode_is_used_outside(recorder: Recorder) -> None:
    for kind in ("blip", "opt"):
        states, plain = FixedStates(), write(kind, None, num_beams=2)
        with torch.inference_mode():
            check_same(write(kind, states, num_beams=2), plain)
        check_same(write(kind, states, num_beams=2), plain)
        with torch.inference_mode():
            check_same(write(kind, states, num_beams=2), plain)
    assert recorder.recorded == 2


@torch.no_grad()
def test_weights_that_lie_elsewhere_are_recorded_anew(recorder: Recorder) -> None:
    states, model = FixedStates(), copy.deepcopy(blip())
    stepper = stepper_of("blip", 0)
    for moved in (False, True):
        if moved:
            model = copy.deepcopy(model)
        again = ReplayedStepper(
            ReplayableDecoder(model.decoder, stepper.memory), states, max_new_tokens=4, moves=False
        )
        again.start(PROMPTS, PADDED)
        again.step(torch.tensor([5, 6, 7]))
    assert recorder.recorded == 2


def test_what_is_no_number_does_not_stay_behind(recorder: Recorder) -> None:
    states = FixedStates()
    write("blip", states)
    state: Any = next(iter(states._states.values()))
    for part in (*state.cache.keys, *state.cache.values):
        part.fill_(float("nan"))
    check_same(write("blip", states), write("blip", None))


def by_value(self: FrozenLanguage, input_ids: Tensor) -> Tensor:
    assert input_ids.max().item() >= 0
    return self.hf.get_input_embeddings()(input_ids)


def by_places(self: FrozenLanguage, input_ids: Tensor) -> Tensor:
    embeds = self.hf.get_input_embeddings()(input_ids)
    embeds[input_ids >= 0] += 0
    return embeds


@pytest.mark.parametrize(("reading", "name"), [(by_value, "_local_scalar_dense"), (by_places, "index")])
def test_a_model_that_waits_for_the_device_is_computed_as_written(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, reading: Any, name: str
) -> None:
    plain = write("qwen2", None)
    monkeypatch.setattr(FrozenLanguage, "embed", reading)
    states = FixedStates()
    with pytest.warns(UserWarning, match=f"without CUDA graphs: {name} reads a value of the device"):
        check_same(write("qwen2", states), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, whatever the shape
        check_same(write("qwen2", states), plain)
        write("qwen2", states, rows=2)
    assert recorder.recorded == 0


def test_without_the_memory_for_it_texts_are_computed_as_written(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, plain = FixedStates(), write("opt", None)
    check_same(write("opt", states), plain)
    made = ReplayableLanguage.fixed

    def too_large(self: ReplayableLanguage, rows: int, room: int, *, moves: bool) -> Any:
        if rows == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return made(self, rows, room, moves=moves)

    monkeypatch.setattr(ReplayableLanguage, "fixed", too_large)
    with pytest.warns(UserWarning, match=r"without CUDA graphs: CUDA out of memory\. Tried"):
        check_same(write("opt", states, rows=2), write("opt", None, rows=2))
    assert not states._states
    check_same(write("opt", states), plain)


@pytest.mark.parametrize("kind", ["short window", "eager", "4bit"])
def test_models_whose_steps_are_not_of_one_form_are_computed_as_written(recorder: Recorder, kind: str) -> None:
    """Before anything is tried out: a window shorter than the room, other attention than torch's, and products
    that choose by values."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(write(kind, FixedStates(), num_beams=2), write(kind, None, num_beams=2))
    assert recorder.recorded == 0
