"""Language models of transformers that number their positions, or read their tokens, in a way of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from openblip.core.errors import UserError
from openblip.models.configs import LanguageConfig
from openblip.models.language import FrozenLanguage
from openblip.models.language_stepper import CausalStepper

SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 26, "pad_token_id": 1, "is_decoder": True,
}  # fmt: skip


def behind_padding() -> dict[str, Any]:
    """Decoders whose first position is behind that of padding."""
    t = transformers
    return {
        "RoBERTa": lambda: t.RobertaForCausalLM(t.RobertaConfig(**SIZES)),
        "CamemBERT": lambda: t.CamembertForCausalLM(t.CamembertConfig(**SIZES)),
        "XLM-RoBERTa": lambda: t.XLMRobertaForCausalLM(t.XLMRobertaConfig(**SIZES)),
        "XLM-RoBERTa-XL": lambda: t.XLMRobertaXLForCausalLM(t.XLMRobertaXLConfig(**SIZES)),
        "data2vec": lambda: t.Data2VecTextForCausalLM(t.Data2VecTextConfig(**SIZES)),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", behind_padding())
def test_positions_are_those_of_transformers(kind: str) -> None:
    """In a whole pass over padded rows, and step by step."""
    torch.manual_seed(0)
    hf = behind_padding()[kind]()
    for parameter in hf.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    language = FrozenLanguage(hf, LanguageConfig(source=kind, dtype="float32"))
    assert language.max_length == 24
    ids = torch.randint(3, 40, (2, 9))
    mask = torch.arange(9) < torch.tensor([[9], [6]])
    # The first three tokens stand in as soft prompts.
    soft, text = language.embed(ids[:, :3]), ids[:, 3:]
    found = language.decoder_logits(soft, text, mask[:, 3:])
    wanted: Tensor = hf(input_ids=ids.where(mask, 1), attention_mask=mask.long()).logits[:, 2:]
    for row, length in enumerate((7, 4)):
        torch.testing.assert_close(found[row, :length], wanted[row, :length], rtol=1e-4, atol=1e-4)
    stepper = CausalStepper(language, soft[:1])
    steps = [stepper.start(text[:1, :2], mask[:1, :2])]
    steps += [stepper.step(text[:1, place]) for place in range(2, 6)]
    torch.testing.assert_close(torch.stack(steps, dim=1), wanted[:1, 2:], rtol=1e-4, atol=1e-4)


def test_models_that_read_ids_in_every_block_are_refused() -> None:
    """Gemma 4 fails without ids, Gemma 3n reads texts otherwise then; without such embeddings Gemma 4 is read."""
    t = transformers
    sizes = {name: value for name, value in SIZES.items() if name not in ("is_decoder", "pad_token_id")}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size_per_layer_input": 40}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0}
    four: dict[str, Any] = {**sizes, "num_kv_shared_layers": 0, "global_head_dim": 8}
    three: dict[str, Any] = {**sizes, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2}
    three |= {"activation_sparsity_pattern": None}
    for hf in (
        t.Gemma4ForCausalLM(t.Gemma4TextConfig(**four, hidden_size_per_layer_input=8)),
        t.Gemma3nForCausalLM(t.Gemma3nTextConfig(**three, hidden_size_per_layer_input=8)),
    ):
        with pytest.raises(
            UserError, match=r"^some-model \(gemma\w+\) reads the ids of tokens in every block, which"
        ):
            FrozenLanguage(hf, LanguageConfig(source="some-model"))
    plain = t.Gemma4ForCausalLM(t.Gemma4TextConfig(**four, hidden_size_per_layer_input=0))
    language = FrozenLanguage(plain, LanguageConfig(source="some-model", dtype="float32"))
    ids = torch.randint(3, 40, (1, 5))
    found = language.decoder_logits(torch.randn(1, 3, 32), ids, torch.ones_like(ids, dtype=torch.bool))
    assert found.shape == (1, 6, 40)
