"""How often writing waits for the device: once for each further token, whatever writes and however.

`tests.waits` counts what would make the host wait for a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from benchmarks.gpu.steps import blip_sizes
from openblip.generation.decode import DecodeConfig, Decoded, decode
from openblip.models.blip import Blip
from openblip.models.configs import LanguageConfig
from openblip.models.language import FrozenLanguage
from openblip.models.language_stepper import CausalStepper, Seq2SeqStepper
from openblip.models.stepper import DecoderStepper
from tests.waits import Waits

VOCABULARY = 600
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "as transformers": {"num_beams": 3, "beam_scoring": "transformers"},
    "rules": {"num_beams": 3, "suppress_ids": (7, 9), "repetition_penalty": 1.3, "no_repeat_ngram": 2},
    "several samples": {"sample": True, "num_sequences": 2, "temperature": 1.5, "suppress_ids": (7,)},
}
PROMPTS = torch.tensor([[5, 6, 7], [8, 9, 3], [11, 2, 4]])
PADDED = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])


def language(kind: str) -> FrozenLanguage:
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": "sdpa"}
    model: Any
    if kind == "opt":
        sizes = {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = transformers.OPTForCausalLM(transformers.OPTConfig(**common, **sizes, word_embed_proj_dim=64))
    elif kind == "qwen2":
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.Qwen2Config(**common, **sizes, num_key_value_heads=2)
        model = transformers.Qwen2ForCausalLM(config)
    else:
        sizes = {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 4, "d_kv": 16}
        config = transformers.T5Config(**common, **sizes, decoder_start_token_id=0)
        model = transformers.T5ForConditionalGeneration(config)
    for value in model.parameters():
        value.data.mul_(3.0)  # so that tokens differ
    return FrozenLanguage(model, LanguageConfig(source=kind))


def write(kind: str, padded: bool, settings: dict[str, Any], tokens: int) -> Decoded:
    """Exactly so many tokens for each of three prompts."""
    config = DecodeConfig(min_new_tokens=tokens, max_new_tokens=tokens, **settings)
    mask = PADDED if padded else torch.ones_like(PADDED)
    with torch.no_grad():
        if kind == "blip":
            torch.manual_seed(0)
            model = Blip(blip_sizes(True)).eval()
            memory = model.remember(model.encode_image(torch.randn(3, 3, *model.config.vision.pixels)))
            return decode(DecoderStepper(model.decoder, memory), PROMPTS, mask, config, eos_ids=102, pad_id=0)
        llm = language(kind)
        soft = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(1))
        if llm.is_encoder_decoder:
            stepper: Any = Seq2SeqStepper(llm, *llm.encode(soft, PROMPTS, mask.flip(1)))
            return decode(stepper, torch.zeros(3, 1, dtype=torch.int64), None, config, eos_ids=1, pad_id=0)
        return decode(CausalStepper(llm, soft), PROMPTS, mask, config, eos_ids=2, pad_id=1)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["blip", "opt", "qwen2", "t5"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_further_token_waits_once(kind: str, padded: bool, settings: str) -> None:
    found = []
    for tokens in (4, 5):
        with Waits() as waits:
            write(kind, padded, SETTINGS[settings], tokens)
        found.append(waits.counts)
    assert found[1] - found[0] == {"_local_scalar_dense": 1}


@pytest.mark.parametrize("kind", ["opt", "qwen2", "t5"])
@pytest.mark.parametrize("padded", [False, True])
def test_what_a_language_model_writes_is_what_it_writes_by_its_tokens_mask(
    kind: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask that transformers makes of the tokens', bit for bit."""
    ours = write(kind, padded, SETTINGS["beams"], 6)

    def as_transformers_does(self: FrozenLanguage, mask: Tensor, rows: int, *, causal: bool) -> Tensor:
        return mask.long()

    monkeypatch.setattr(FrozenLanguage, "_who_sees_whom", as_transformers_does)
    theirs = write(kind, padded, SETTINGS["beams"], 6)
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(ours.token_log_probs, theirs.token_log_probs)
