"""Generated ids equal those of the reference's own search, stored from transformers 4.15.0.

tests/golden/generation.json holds 60 random settings on the table language model of steppers.py, and what
the release that BLIP was written for made of them: greedy and beam search, lengths counted with the prompt.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from steppers import TableStepper

from openblip.generation.decode import DecodeConfig, decode

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "generation.json").read_text())


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])))
def test_ids_equal_the_reference(number: int) -> None:
    case = GOLDEN["cases"][number]
    prompts = torch.tensor(case["prompts"])
    length = prompts.shape[1]
    config = DecodeConfig(
        num_beams=case["num_beams"],
        num_sequences=case["num_sequences"],
        max_new_tokens=case["max_length"] - length,
        min_new_tokens=max(0, case["min_length"] - length),
        length_penalty=case["length_penalty"],
        repetition_penalty=case["repetition_penalty"],
        no_repeat_ngram=case["no_repeat_ngram"],
        early_stopping=case["early_stopping"],
    )
    stepper = TableStepper(case["images"], case["vocab_size"], case["sharpness"])
    decoded = decode(stepper, prompts, None, config, eos_ids=GOLDEN["eos"], pad_id=GOLDEN["pad"])
    assert decoded.with_prompts(prompts, pad_id=GOLDEN["pad"]).tolist() == case["ids"]
    if case["scores"] is not None:
        torch.testing.assert_close(decoded.scores, torch.tensor(case["scores"]))


def test_the_two_scorings_differ_where_they_should() -> None:
    """Some stored case must come out otherwise with today's scoring, or the option would mean nothing."""
    different = 0
    for case in GOLDEN["cases"]:
        prompts = torch.tensor(case["prompts"])
        config = DecodeConfig(
            num_beams=case["num_beams"],
            num_sequences=case["num_sequences"],
            max_new_tokens=case["max_length"] - prompts.shape[1],
            beam_scoring="transformers",
            length_penalty=case["length_penalty"],
        )
        reference = DecodeConfig(**{**vars(config), "beam_scoring": "reference"})
        results = [
            decode(
                TableStepper(case["images"], case["vocab_size"], case["sharpness"]),
                prompts,
                None,
                each,
                eos_ids=GOLDEN["eos"],
                pad_id=GOLDEN["pad"],
            ).with_prompts(prompts)
            for each in (config, reference)
        ]
        different += not torch.equal(*results)
    assert different >= 5
