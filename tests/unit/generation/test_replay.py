"""Recorded steps write what computed steps write: texts, likelihoods, beams and samples, whatever is padded.

A CPU has no CUDA graphs: `tests.recorder` records operations and computes them again on the same memory.
`tests/gpu` does the same with graphs.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.generation.decode import DecodeConfig, Decoded, decode, recorded
from openblip.models import replay
from openblip.models.language import FrozenLanguage
from openblip.models.language_fixed import ReplayableLanguage
from openblip.models.layers import ImageMemory
from openblip.models.replay import FixedStates, rounded_room
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
    generator = torch.Generator().manual_seed(seed)
    stepper: Any
    with torch.no_grad():
        if kind == "blip":
            model = blip()
            seen = torch.randn(rows, 3, *model.config.vision.pixels, generator=generator)
            memory = model.remember(model.encode_image(seen))
            if masked:
                real = torch.arange(memory.keys[0].shape[2]) < torch.tensor([[3], [2], [4]])[:rows]
                memory = ImageMemory(memory.keys, memory.values, real)
            stepper = ReplayableDecoder(model.decoder, memory)
        else:
            llm = language(kind)
            stepper = ReplayableLanguage(llm, torch.randn(rows, 4, llm.width, generator=generator))
        # Texts end at different steps, so that rows are dropped from the batch: a sixth of the tokens end one.
        ends = range(40, 40 + stepper.vocab_size // 6)
        stepper = recorded(stepper, states, config)
        return decode(stepper, prompts, mask, config, eos_ids=ends, pad_id=0)


def check_same(ours: Decoded, theirs: Decoded) -> None:
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(ours.lengths, theirs.lengths)
    # Attention over masked slots besides: other sums of the same numbers.
    torch.testing.assert_close(ours.token_log_probs, theirs.token_log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_write_the_same(recorder: Recorder, kind: str, padded: bool, settings: str) -> None:
    states = FixedStates()
    for seed in (0, 1):  # the second text finds what the first one left
        plain = write(kind, None, padded=padded, seed=seed, **SETTINGS[settings])
        ours = write(kind, states, padded=padded, seed=seed, **SETTINGS[settings])
        check_same(ours, plain)
        if seed == 0:
            first, texts = recorder.recorded, plain.ids
    assert not (texts.shape == plain.ids.shape and torch.equal(texts, plain.ids)), "the models ignore their input"
    assert recorder.replayed > 6
    assert first <= recorder.recorded <= 4


def test_a_masked_memory_is_read_with_its_mask(recorder: Recorder) -> None:
    states = FixedStates()
    plain, whole = (write("blip", None, masked=masked, num_beams=3) for masked in (True, False))
    check_same(write("blip", states, masked=True, num_beams=3), plain)
    check_same(write("blip", states, masked=False, num_beams=3), whole)
    assert not torch.equal(plain.scores, whole.scores)


def test_rows_are_dropped_and_texts_of_the_same_shape_share_what_was_recorded(recorder: Recorder) -> None:
    states = FixedStates()
    for kind in ("blip", "qwen2"):
        for seed in range(6):
            check_same(write(kind, states, seed=seed, num_beams=2), write(kind, None, seed=seed, num_beams=2))
        # Three prompts, and one where two are done; more is not recorded, however many texts are written.
        assert recorder.recorded == 2
        recorder.recorded, states = 0, FixedStates()


def test_other_rows_and_lengths_have_states_of_their_own(recorder: Recorder) -> None:
    states = FixedStates()
    for rows, tokens in ((3, 4), (2, 4), (3, 5), (3, 30)):
        plain = write("qwen2", None, rows=rows, tokens=tokens, min_new_tokens=tokens)
        check_same(write("qwen2", states, rows=rows, tokens=tokens, min_new_tokens=tokens), plain)
    assert recorder.recorded == 3  # four and five tokens have the same room
    assert [rounded_room(n) for n in (1, 16, 17)] == [16, 16, 32]


def test_of_many_shapes_those_that_were_used_last_are_kept(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_MOST_STATES", 2)
    states = FixedStates()
    for rows in (1, 2, 1, 3, 1, 2):
        write("blip", states, rows=rows, tokens=4, min_new_tokens=4)
    assert recorder.recorded == 4  # 1, 2, 3, and 2 again


def test_without_a_gpu_the_same_steps_are_computed_as_written() -> None:
    for kind in ("blip", "opt"):
        check_same(write(kind, FixedStates(), num_beams=3), write(kind, None, num_beams=3))


def test_what_is_no_number_does_not_stay_behind(recorder: Recorder) -> None:
    states = FixedStates()
    write("blip", states)
    state = next(iter(states._states.values()))
    for part in (*state.cache.keys, *state.cache.values):
        part.fill_(float("nan"))
    check_same(write("blip", states), write("blip", None))


def test_a_model_that_waits_for_the_device_is_computed_as_written(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits(self: FrozenLanguage, input_ids: Tensor) -> Tensor:
        assert input_ids.max().item() >= 0
        return self.hf.get_input_embeddings()(input_ids)

    plain = write("qwen2", None)
    monkeypatch.setattr(FrozenLanguage, "embed", waits)
    states = FixedStates()
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted"):
        check_same(write("qwen2", states), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        check_same(write("qwen2", states), plain)
    assert recorder.replayed == 0


@pytest.mark.parametrize("kind", ["short window", "eager"])
def test_models_whose_steps_are_not_of_one_form_are_computed_as_written(recorder: Recorder, kind: str) -> None:
    check_same(write(kind, FixedStates(), num_beams=2), write(kind, None, num_beams=2))
    assert recorder.recorded == 0
