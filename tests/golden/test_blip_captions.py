"""Generated captions equal the reference's ids: beam 3, greedy, beam 5 with a repetition penalty.

The reference counts the prompt in its lengths; ours counts new tokens only, so the prompt is subtracted.
"""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenBlip

from openblip.generation.decode import DecodeConfig, decode
from openblip.models.stepper import DecoderStepper

PROMPT = "a picture of "
SETTINGS = {
    "beam3": {"num_beams": 3, "least": 5, "most": 20},
    "greedy": {"num_beams": 1, "least": 5, "most": 20},
    "beam5_rep": {"num_beams": 5, "least": 8, "most": 24, "repetition_penalty": 1.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_ids_equal_the_reference(golden: GoldenBlip, name: str) -> None:
    settings = dict(SETTINGS[name])
    tokenizer, images = golden.tokenizer, golden.io["image"]
    model = golden.model("caption")
    prompt = tokenizer.encode([PROMPT] * len(images), first="dec", end=False)
    length = prompt.input_ids.shape[1]
    config = DecodeConfig(
        min_new_tokens=settings.pop("least") - length, max_new_tokens=settings.pop("most") - length, **settings
    )
    expected = golden.io[f"caption.{name}_ids"]

    def written(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            memory = model.remember(model.encode_image(images[rows]))
        stepper = DecoderStepper(model.decoder, memory)
        decoded = decode(
            stepper,
            prompt.input_ids[rows],
            prompt.attention_mask[rows],
            config,
            eos_ids=tokenizer.sep_id,
            pad_id=tokenizer.pad_id,
        )
        return decoded.with_prompts(prompt.input_ids[rows], pad_id=tokenizer.pad_id)

    ids = written(slice(None))
    assert torch.equal(ids, expected[:, : ids.shape[1]])
    assert (expected[:, ids.shape[1] :] == tokenizer.pad_id).all()
    for row in range(len(images)):
        alone = written(slice(row, row + 1))[0]
        assert torch.equal(alone, ids[row, : len(alone)]), "a caption does not depend on the rest of the batch"
