"""Ids equal those that the installed `transformers` generates, on small random GPT-2 models.

`Reader` wraps a model without a cache: it reads the whole text anew for each token, so a difference can
only come from the search. Prompts of different length are padded on the left for `transformers`, on either
side for us.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openblip.generation.decode import DecodeConfig, decode

transformers = pytest.importorskip("transformers")

VOCAB, EOS, PAD = 12, 4, 0


def random_model(seed: int) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.6,
        eos_token_id=EOS,
        bos_token_id=3,
        pad_token_id=PAD,
    )
    return transformers.GPT2LMHeadModel(config).eval()


class Reader:
    """A stepper over any causal language model, without a cache."""

    vocab_size = VOCAB
    max_length = 64

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        order = attention_mask.int().argsort(dim=1, stable=True)
        self.ids, self.mask = prompt_ids.gather(1, order), attention_mask.gather(1, order)
        return self._logits()

    def step(self, token: Tensor) -> Tensor:
        self.ids = torch.cat([self.ids, token[:, None]], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(token[:, None], dtype=torch.bool)], dim=1)
        return self._logits()

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        self.ids, self.mask = self.ids[index], self.mask[index]

    def _logits(self) -> Tensor:
        positions = (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return self.model(
            self.ids, attention_mask=self.mask.long(), position_ids=positions, use_cache=False
        ).logits[:, -1]


PROMPTS = torch.tensor([[PAD, PAD, 5, 9], [PAD, 7, 6, 6], [11, 3, 8, 6], [PAD, PAD, PAD, 10]])
MASK = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)

SETTINGS = {
    "plain": {},
    "bounds": {"min_new_tokens": 4, "max_new_tokens": 9},
    "at-least-most": {"min_new_tokens": 6, "max_new_tokens": 6},
    "one-token": {"max_new_tokens": 1},
    "repetition": {"repetition_penalty": 1.5},
    "two-ends": {"eos": [EOS, 1]},
    "everything": {"repetition_penalty": 1.2, "min_new_tokens": 3, "suppress_ids": (5, 6)},
}
BEAM_SETTINGS = {
    "no-penalty": {"length_penalty": 0.0},
    "short": {"length_penalty": -1.0},
    "long": {"length_penalty": 2.0},
    "early": {"early_stopping": True},
    "early-long": {"early_stopping": True, "length_penalty": 2.0},
}


def compare(seed: int, num_beams: int, settings: dict, prompts: Tensor = PROMPTS, mask: Tensor = MASK) -> int:
    """Assert equal ids (and beam scores) for one setting; the number of texts that ended by themselves."""
    model = random_model(seed)
    settings = {"max_new_tokens": 12, **settings}
    eos = settings.pop("eos", EOS)
    config = DecodeConfig(num_beams=num_beams, num_sequences=num_beams, beam_scoring="transformers", **settings)
    decoded = decode(Reader(model), prompts, mask, config, eos_ids=eos, pad_id=PAD)  # type: ignore[arg-type]

    renamed = dict(settings)
    if "no_repeat_ngram" in renamed:
        renamed["no_repeat_ngram_size"] = renamed.pop("no_repeat_ngram")
    if "suppress_ids" in renamed:
        renamed["suppress_tokens"] = list(renamed.pop("suppress_ids"))
    output = model.generate(
        prompts,
        attention_mask=mask.long(),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **renamed,
    )
    theirs = output.sequences[:, prompts.shape[1] :]
    for row, (ids, length) in enumerate(zip(decoded.ids, decoded.lengths.tolist(), strict=True)):
        assert ids[:length].tolist() == theirs[row, :length].tolist()
        # transformers 5.23 fills with the end token instead where padding is token 0 (`pad or eos`).
        assert torch.isin(theirs[row, length:], torch.tensor([PAD, EOS])).all()
    if num_beams > 1:
        torch.testing.assert_close(decoded.scores, output.sequences_scores, atol=1e-4, rtol=1e-4)
    return int(decoded.ended.sum())


@pytest.mark.parametrize("num_beams", [1, 3, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_ids_equal(name: str, num_beams: int) -> None:
    ended = sum(compare(seed, num_beams, SETTINGS[name]) for seed in range(2))
    # Where texts may end some must, or the test would not see how ends are kept.
    assert ended > 0 or SETTINGS[name].get("max_new_tokens", 12) < 7


@pytest.mark.parametrize("num_beams", [3, 5])
@pytest.mark.parametrize("name", BEAM_SETTINGS)
def test_ids_equal_for_settings_of_beams(name: str, num_beams: int) -> None:
    assert sum(compare(seed, num_beams, BEAM_SETTINGS[name]) for seed in range(10, 12)) > 0


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_ids_equal_where_ngrams_must_not_repeat(size: int, num_beams: int) -> None:
    """Without padding only: `transformers` takes padding for text here."""
    prompts = PROMPTS[2:3]
    for seed in range(2):
        settings = {"no_repeat_ngram": size, "max_new_tokens": 16}
        compare(seed, num_beams, settings, prompts, torch.ones_like(prompts, dtype=torch.bool))
