"""A language model from a GGUF file, which is written on the spot: the same model as in transformers' format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from small_blip2 import spread

from openblip.checkpoints.blip2_parts import open_language, open_language_tokenizer
from openblip.core.errors import UserError
from openblip.models.configs import LanguageConfig
from openblip.models.language import make_language

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁a", "▁red", "▁bus", "▁", *"abdersu"]


def write_gguf(path: Path) -> Any:
    """A Llama in llama.cpp's names, queries and keys in its order of rotation; returns transformers' model."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
        rms_norm_eps=1e-6, **SIZES,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    spread(model, 0.2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(i) for i in range(len(WORDS))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(WORDS) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
        "model.layers": "blk",
    }  # fmt: skip
    for key, value in model.state_dict().items():
        name, values = key, value.numpy().astype(np.float32)
        if "q_proj" in key or "k_proj" in key:
            values = values.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_is_the_model_it_was_made_from(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "small.gguf")
    config = LanguageConfig(source="small.gguf")
    language = open_language(config, base=tmp_path / "run" / "model")  # found above the model that names it
    tokenizer = open_language_tokenizer(config, base=tmp_path / "run" / "model")
    assert tokenizer.puts_bos
    assert tokenizer.vocab_size == len(WORDS)
    read = tokenizer.texts(["a red bus"])
    assert tokenizer.decode(read.input_ids[0, 1:]) == "a red bus"
    soft = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = language.decoder_logits(soft, read.input_ids, read.attention_mask)
        embeds = torch.cat((soft, expected.model.embed_tokens(read.input_ids)), dim=1)
        wanted = expected(inputs_embeds=embeds).logits[:, 2:]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)  # float32, in another order


def test_what_is_no_gguf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "small.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(90))
    with pytest.raises(UserError, match="cannot be read as a GGUF file"):
        make_language(LanguageConfig(source=str(tmp_path / "small.gguf")))
    with pytest.raises(UserError, match=r"opened from one by its name, .*small\.gguf"):
        make_language(LanguageConfig(source=str(tmp_path)))
    with pytest.raises(UserError, match=r"leave language\.quantize out"):
        make_language(LanguageConfig(source=str(tmp_path / "small.gguf"), quantize="8bit"))
    for lost in (tmp_path / "lost.gguf", tmp_path / "lost" / "small.gguf"):
        named = lost if lost.parent == tmp_path else lost.parent
        with pytest.raises(UserError, match=rf"there is no (file|folder) {named}$"):
            make_language(LanguageConfig(source=str(lost)))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r'pip install "openblip\[gguf\]"'):
        make_language(LanguageConfig(source=str(tmp_path / "small.gguf")))
