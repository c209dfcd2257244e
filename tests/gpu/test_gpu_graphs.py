"""On a GPU: steps recorded as CUDA graphs write what steps that are launched one by one write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from openblip.generation.decode import DecodeConfig, Decoded, decode, recorded
from openblip.models.language_fixed import ReplayableLanguage
from openblip.models.replay import FixedStates
from openblip.models.stepper_fixed import ReplayableDecoder
from tests.replay_models import PADDED, PROMPTS, blip, language

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "samples": {"sample": True, "num_sequences": 2, "temperature": 1.5},
}


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Texts are compared token by token, so products are not shortened to TensorFloat-32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@torch.no_grad()
def write(kind: str, states: FixedStates | None, seed: int, settings: dict[str, Any]) -> Decoded:
    config = DecodeConfig(max_new_tokens=12, **settings)
    generator = torch.Generator().manual_seed(seed)
    stepper: Any
    if kind == "blip":
        model = blip().cuda()
        images = torch.randn(3, 3, *model.config.vision.pixels, generator=generator).cuda()
        stepper = ReplayableDecoder(model.decoder, model.remember(model.encode_image(images)))
    else:
        llm = language(kind).cuda()
        stepper = ReplayableLanguage(llm, torch.randn(3, 4, llm.width, generator=generator).cuda())
    ends = range(40, 40 + stepper.vocab_size // 6)
    prompts, mask = PROMPTS.cuda(), PADDED.cuda()
    return decode(recorded(stepper, states, config), prompts, mask, config, eos_ids=ends, pad_id=0)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["blip", "opt", "qwen2", "gemma3"])
def test_graphs_write_the_same(kind: str, settings: str) -> None:
    states = FixedStates()
    for seed in (0, 1, 0):
        plain = write(kind, None, seed, SETTINGS[settings])
        ours = write(kind, states, seed, SETTINGS[settings])
        assert torch.equal(ours.ids, plain.ids)
        torch.testing.assert_close(ours.token_log_probs, plain.token_log_probs, rtol=1e-3, atol=1e-3)
    assert states._states
    assert None not in states._states.values(), "the steps could not be recorded"
