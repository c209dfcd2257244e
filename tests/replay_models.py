"""Small models that write texts which depend on their input, for recorded steps."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import transformers

from benchmarks.gpu.steps import blip_sizes
from openblip.models.blip import Blip
from openblip.models.configs import LanguageConfig
from openblip.models.language import FrozenLanguage

VOCABULARY = 600
PROMPTS = torch.tensor([[5, 6, 7], [8, 9, 3], [11, 2, 4]])
PADDED = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])


@cache
def blip() -> Blip:
    torch.manual_seed(0)
    model = Blip(blip_sizes(True)).eval()
    for value in model.decoder.parameters():
        value.data.mul_(4.0)  # so that tokens differ
    return model


@cache
def language(kind: str) -> FrozenLanguage:
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": "sdpa"}
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide = {**sizes, "intermediate_size": 128}
    model: Any
    if kind == "opt":
        opt = transformers.OPTConfig(**common, **sizes, ffn_dim=128, word_embed_proj_dim=64)
        model = transformers.OPTForCausalLM(opt)
    elif kind in ("qwen2", "eager", "4bit"):
        qwen = transformers.Qwen2Config(**common, **wide, num_key_value_heads=2)
        model = transformers.Qwen2ForCausalLM(qwen)
        if kind == "eager":
            model.set_attn_implementation("eager")
    elif kind == "gpt2":
        gpt = transformers.GPT2Config(**common, n_embd=64, n_layer=2, n_head=4)
        model = transformers.GPT2LMHeadModel(gpt)
    elif kind == "gpt_neox":
        model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**common, **wide))
    elif kind in ("gemma3", "short window"):
        layers = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16, "num_key_value_heads": 1}
        window = 10 if kind == "short window" else 64
        gemma = transformers.Gemma3TextConfig(**common, **wide, **layers, sliding_window=window)
        model = transformers.Gemma3ForCausalLM(gemma)
    else:
        raise ValueError(kind)
    for value in model.parameters():
        value.data.mul_(3.0)  # so that tokens differ
    made = FrozenLanguage(model, LanguageConfig(source=kind))
    made.config = replace(made.config, quantize="4bit" if kind == "4bit" else "none")  # by its word alone
    return made
