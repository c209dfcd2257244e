"""Greedy decoding, beam search and sampling on a language model that can be computed by hand.

Equality with the reference's own search is in test_beam_reference.py, with the installed `transformers` in
test_against_transformers.py; what holds for any model is here: batch equals single, seeds, bounds, bad input.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from steppers import TableStepper, assert_log_prob, plain_beam_search

from openblip.core.errors import UserError
from openblip.generation.decode import DecodeConfig, Decoded, decode

VOCAB, EOS, PAD = 14, 1, 0
PROMPTS = [[5, 3], [7, 2, 9], [4], [11, 12, 13, 2], [6, 6]]


def pad(prompts: list[list[int]], side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids, mask = (
        torch.zeros(len(prompts), width, dtype=torch.int64),
        torch.zeros(len(prompts), width, dtype=torch.bool),
    )
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
        ids[row, place], mask[row, place] = torch.tensor(prompt), True
    return ids, mask


def write(config: DecodeConfig, rows: list[int] | None = None, side: str = "right", eos: object = EOS) -> Decoded:
    rows = list(range(len(PROMPTS))) if rows is None else rows
    ids, mask = pad([PROMPTS[row] for row in rows], side)
    stepper = TableStepper(rows, VOCAB)
    return decode(stepper, ids, mask, config, eos_ids=eos, pad_id=PAD, keys=torch.tensor(rows))  # type: ignore[arg-type]


def texts(decoded: Decoded) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(decoded.ids, decoded.lengths, strict=True)]


CONFIGS = {
    "greedy": DecodeConfig(max_new_tokens=12),
    "greedy-rules": DecodeConfig(
        max_new_tokens=12, repetition_penalty=1.4, no_repeat_ngram=2, min_new_tokens=4, suppress_ids=(8,)
    ),
    "beam": DecodeConfig(num_beams=3, num_sequences=2, max_new_tokens=12),
    "beam-rules": DecodeConfig(num_beams=4, max_new_tokens=10, repetition_penalty=1.3, no_repeat_ngram=3),
    "beam-transformers": DecodeConfig(num_beams=3, max_new_tokens=12, beam_scoring="transformers"),
    "sample": DecodeConfig(sample=True, num_sequences=3, max_new_tokens=12, seed=3),
    "nucleus": DecodeConfig(sample=True, num_sequences=2, max_new_tokens=12, top_p=0.8, temperature=0.9),
    "top-k": DecodeConfig(sample=True, max_new_tokens=12, top_k=4, top_p=0.95, repetition_penalty=1.2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_gives_what_single_prompts_give(name: str) -> None:
    together = write(CONFIGS[name])
    per_prompt = CONFIGS[name].num_sequences
    lengths = set()
    for row in range(len(PROMPTS)):
        alone = write(CONFIGS[name], [row])
        mine = slice(row * per_prompt, (row + 1) * per_prompt)
        assert texts(together)[mine] == texts(alone)
        assert together.rows[mine].tolist() == [row] * per_prompt
        torch.testing.assert_close(together.log_probs[mine], alone.log_probs)
        torch.testing.assert_close(together.scores[mine], alone.scores)
        lengths |= set(alone.lengths.tolist())
    assert len(lengths) > 1, "the texts must differ in length, or dropping finished rows is not tested"


@pytest.mark.parametrize("name", CONFIGS)
def test_who_watches_sees_every_token_once_as_it_comes(name: str) -> None:
    config = CONFIGS[name]
    seen: list[list[int]] = [[] for _ in range(len(PROMPTS) * config.num_sequences)]

    def watch(rows: torch.Tensor, tokens: torch.Tensor) -> None:
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            seen[row].append(token)

    ids, mask = pad(PROMPTS)
    stepper, keys = TableStepper(list(range(len(PROMPTS))), VOCAB), torch.arange(len(PROMPTS))
    decoded = decode(stepper, ids, mask, config, eos_ids=EOS, pad_id=PAD, keys=keys, watch=watch)
    assert texts(decoded) == texts(write(config))
    assert seen == ([[]] * len(seen) if config.num_beams > 1 else texts(decoded))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_side_of_the_padding_does_not_matter(name: str) -> None:
    right, left = write(CONFIGS[name], side="right"), write(CONFIGS[name], side="left")
    assert texts(right) == texts(left)
    torch.testing.assert_close(right.token_log_probs, left.token_log_probs)


@pytest.mark.parametrize("name", CONFIGS)
def test_results_say_what_the_model_says(name: str) -> None:
    """Log-probabilities are the model's own, padding is neutral, `ended` and `lengths` tell the truth."""
    decoded = write(CONFIGS[name])
    stepper = TableStepper(list(range(len(PROMPTS))), VOCAB)
    steps = torch.arange(decoded.ids.shape[1])
    outside = steps >= decoded.lengths[:, None]
    assert (decoded.ids[outside] == PAD).all()
    assert (decoded.token_log_probs[outside] == 0).all()
    for ids, row, ended, log_prob in zip(
        texts(decoded), decoded.rows.tolist(), decoded.ended.tolist(), decoded.log_probs.tolist(), strict=True
    ):
        assert (ids[-1] == EOS) == ended
        assert EOS not in ids[:-1]
        assert ended or len(ids) == CONFIGS[name].max_new_tokens
        assert_log_prob(stepper, row, PROMPTS[row], ids, log_prob)


def test_finished_prompts_are_dropped_from_the_work() -> None:
    ids, mask = pad(PROMPTS)
    stepper = TableStepper(list(range(len(PROMPTS))), VOCAB)
    decoded = decode(stepper, ids, mask, DecodeConfig(max_new_tokens=40), eos_ids=EOS, pad_id=PAD)
    assert stepper.sizes == sorted(stepper.sizes, reverse=True)
    assert stepper.sizes[-1] < stepper.sizes[0]
    assert len(stepper.sizes) == int(decoded.lengths.max()) - 1


@pytest.mark.parametrize("scoring", ["reference", "transformers"])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("eos", [(1,), (1, 6)])
def test_beam_search_equals_the_plain_loop(
    scoring: str, num_beams: int, length_penalty: float, early_stopping: bool, eos: tuple[int, ...]
) -> None:
    for max_new_tokens, min_new_tokens in ((1, 0), (6, 0), (12, 5)):
        config = DecodeConfig(
            num_beams=num_beams,
            num_sequences=num_beams,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            beam_scoring=scoring,  # type: ignore[arg-type]
        )
        decoded = write(config, eos=eos)
        stepper = TableStepper(list(range(len(PROMPTS))), VOCAB)
        for row, prompt in enumerate(PROMPTS):
            expected = plain_beam_search(
                stepper,
                row,
                prompt,
                num_beams=num_beams,
                num_sequences=num_beams,
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                scoring=scoring,
                eos=set(eos),
            )
            mine = slice(row * num_beams, (row + 1) * num_beams)
            assert texts(decoded)[mine] == [tokens for tokens, _ in expected]
            torch.testing.assert_close(decoded.scores[mine], torch.tensor([score for _, score in expected]))


def test_one_beam_is_greedy() -> None:
    greedy = write(DecodeConfig(max_new_tokens=9))
    stepper = TableStepper(list(range(len(PROMPTS))), VOCAB)
    ids, mask = pad(PROMPTS)
    logits = stepper.start(ids, mask)
    for step in range(greedy.ids.shape[1]):
        token = logits.argmax(dim=1)
        inside = step < greedy.lengths
        assert torch.equal(token[inside], greedy.ids[inside, step])
        logits = stepper.step(token)


def test_seed_and_key_name_the_draw() -> None:
    config = DecodeConfig(sample=True, num_sequences=4, max_new_tokens=10)
    first = texts(write(config))
    assert first == texts(write(config))
    assert first != texts(write(dataclasses.replace(config, seed=1)))
    assert len({tuple(text) for text in first}) > 15, "samples of one prompt differ"
    more = texts(write(dataclasses.replace(config, num_sequences=6)))
    assert [more[6 * (i // 4) + i % 4] for i in range(20)] == first, "asking for more keeps the first ones"


def test_texts_keep_their_bounds() -> None:
    for sample in (False, True):
        decoded = write(DecodeConfig(sample=sample, min_new_tokens=5, max_new_tokens=8))
        assert (decoded.lengths >= 5).all()
        assert (decoded.lengths <= 8).all()
        assert (decoded.ids[:, :5] != EOS).all()
    never = write(DecodeConfig(max_new_tokens=20, suppress_ids=(EOS,)))
    assert not never.ended.any()
    assert (never.lengths == 20).all()


def test_prompt_and_text_are_joined_without_a_gap() -> None:
    for side in ("left", "right"):
        decoded = write(DecodeConfig(num_beams=2, num_sequences=2, max_new_tokens=7), side=side)
        ids, mask = pad(PROMPTS, side)
        joined = decoded.with_prompts(ids, mask, pad_id=PAD)
        for row, text, line in zip(decoded.rows.tolist(), texts(decoded), joined.tolist(), strict=True):
            whole = [*PROMPTS[row], *text]
            assert line == whole + [PAD] * (joined.shape[1] - len(whole))


def test_no_prompts_give_no_texts() -> None:
    none = torch.zeros(0, 3, dtype=torch.int64)
    decoded = decode(TableStepper([], VOCAB), none, None, DecodeConfig(), eos_ids=EOS, pad_id=PAD)
    assert decoded.ids.shape == (0, 0)
    assert decoded.log_probs.shape == (0,)
    assert decoded.with_prompts(none).shape[0] == 0


def test_tokens_that_the_model_lacks_are_named() -> None:
    ids, mask = pad(PROMPTS)
    config = DecodeConfig(suppress_ids=(3, VOCAB))
    with pytest.raises(UserError, match=f"suppress_ids has {VOCAB}, and the model's tokens end at {VOCAB - 1}"):
        decode(TableStepper([0] * len(ids), VOCAB), ids, mask, config, eos_ids=EOS, pad_id=PAD)


def test_text_that_does_not_fit_is_refused_before_any_work() -> None:
    stepper = TableStepper([0], VOCAB)
    stepper.max_length = 10
    prompt = torch.tensor([[3, 4, 5]])
    with pytest.raises(UserError, match="write at most 8 tokens"):
        decode(stepper, prompt, None, DecodeConfig(max_new_tokens=9), eos_ids=EOS, pad_id=PAD)
    decode(stepper, prompt, None, DecodeConfig(max_new_tokens=8), eos_ids=EOS, pad_id=PAD)


def test_scores_that_are_not_numbers_are_an_error() -> None:
    class Broken(TableStepper):
        def step(self, token: torch.Tensor) -> torch.Tensor:
            return super().step(token) * float("nan")

    for config in (DecodeConfig(), DecodeConfig(num_beams=2), DecodeConfig(sample=True, top_p=0.9)):
        with pytest.raises(UserError, match="not numbers"):
            decode(Broken([0], VOCAB), torch.tensor([[3]]), None, config, eos_ids=EOS, pad_id=PAD)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 40}, "min_new_tokens"),
        ({"temperature": 0.0, "sample": True}, "temperature"),
        ({"top_p": 1.5, "sample": True}, "top_p"),
        ({"top_p": 0.9}, "sample"),
        ({"num_beams": 3, "sample": True}, "num_beams"),
        ({"num_sequences": 2}, "num_sequences"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"beam_scoring": "old"}, "reference"),
        ({"temperature": 1e-42, "sample": True}, "temperature"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": float("inf")}, "length_penalty"),
        ({"suppress_ids": (-1,)}, "suppress_ids"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        DecodeConfig(**settings)
