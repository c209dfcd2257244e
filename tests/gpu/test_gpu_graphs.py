"""On a GPU: steps recorded as CUDA graphs write what steps that are launched one by one write."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from openblip.generation.decode import DecodeConfig, Decoded, decode, recorded
from openblip.models.language_fixed import ReplayableLanguage
from openblip.models.replay import _MOST_STATES, FixedStates
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
    """Texts are compared token by token: convolutions are not shortened to TensorFloat-32, as products are not."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@cache
def on_gpu(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A copy, since the other tests use the model on the CPU."""
    return copy.deepcopy(blip() if kind == "blip" else language(kind)).to("cuda", dtype)


@torch.no_grad()
def write(
    kind: str,
    states: FixedStates | None,
    seed: int,
    settings: dict[str, Any],
    *,
    rows: int = 3,
    dtype: torch.dtype = torch.float32,
) -> Decoded:
    config = DecodeConfig(max_new_tokens=12, **settings)
    generator, model = torch.Generator().manual_seed(seed), on_gpu(kind, dtype)
    stepper: Any
    if kind == "blip":
        images = torch.randn(rows, 3, *model.config.vision.pixels, generator=generator).to("cuda", dtype)
        stepper = ReplayableDecoder(model.decoder, model.remember(model.encode_image(images)))
    else:
        soft = torch.randn(rows, 4, model.width, generator=generator).to("cuda", dtype)
        stepper = ReplayableLanguage(model, soft)
    ends = range(40, 40 + stepper.vocab_size // 6)
    prompts, mask = PROMPTS.repeat(4, 1)[:rows].cuda(), PADDED.repeat(4, 1)[:rows].cuda()
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
    assert states._states, "the steps could not be recorded"


@pytest.mark.parametrize("kind", ["blip", "opt"])
def test_graphs_are_dropped_and_recorded_again(kind: str) -> None:
    """More shapes than are kept, twice; random numbers and another model's graphs go on between them."""
    states, others = FixedStates(), FixedStates()
    for rows in (*range(1, 11), *range(1, 11)):
        plain = write(kind, None, rows, SETTINGS["beams"], rows=rows)
        ours = write(kind, states, rows, SETTINGS["beams"], rows=rows)
        write("qwen2", others, 0, SETTINGS["beams"])
        assert torch.rand(2, device="cuda").isfinite().all()
        assert torch.equal(ours.ids, plain.ids)
    assert len(states._states) == _MOST_STATES


@pytest.mark.parametrize("kind", ["blip", "opt"])
def test_graphs_in_half_precision(kind: str) -> None:
    """Likelihoods of what is written; texts themselves may differ where two tokens are equally likely."""
    states = FixedStates()
    for seed in (0, 1):
        plain = write(kind, None, seed, SETTINGS["greedy"], dtype=torch.bfloat16)
        ours = write(kind, states, seed, SETTINGS["greedy"], dtype=torch.bfloat16)
        first = (ours.token_log_probs[:, 0] - plain.token_log_probs[:, 0]).abs()
        assert float(first.max()) < 0.1
    assert states._states
