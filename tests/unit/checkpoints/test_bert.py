"""A newly initialized text transformer started from a BERT gives BERT's values; the BERTs are made on the spot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaModel

from openblip.checkpoints.bert import load_bert
from openblip.core.errors import UserError
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""the same sums of float32 in another order"""
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
CONFIG = BlipConfig(
    vision=VisionConfig(image_size=16, patch_size=8, width=24, depth=1, num_heads=2),
    text=TextConfig(
        vocab_size=42,
        width=32,
        depth=2,
        num_heads=4,
        inner_width=48,
        max_positions=16,
        memory_width=24,
        dropout=0.0,
    ),
    embed_dim=8,
)


def bert(kind: type = BertModel, **changes: object) -> BertModel | BertForMaskedLM:
    """A BERT with random weights large enough that every one of them shows."""
    torch.manual_seed(1)
    model = kind(BertConfig(**{**SIZES, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def saved(model: BertModel | BertForMaskedLM, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def new_model(**parts: bool) -> Blip:
    torch.manual_seed(0)
    return Blip(replace(CONFIG, **parts)).eval()


def texts() -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(9) < torch.tensor([9, 5, 7])[:, None]
    return ids, mask


def test_the_encoder_alone_gives_berts_hidden_states(tmp_path: Path) -> None:
    donor, model = bert(), new_model()
    ids, mask = texts()
    before = model.encoder(ids, mask)
    load_bert(model, saved(donor, tmp_path / "bert"))
    expected = donor(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(model.encoder(ids, mask)[mask], expected[mask], **CLOSE)
    assert not torch.allclose(before[mask], expected[mask], atol=0.1)


@pytest.mark.parametrize("encoder", [True, False])
def test_the_decoder_gives_the_logits_of_a_causal_bert(tmp_path: Path, encoder: bool) -> None:
    donor, model = bert(BertForMaskedLM), new_model(encoder=encoder)
    load_bert(model, saved(donor, tmp_path / "bert"))
    ids, _ = texts()
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(3, 1, 9, 9)
    blocked = torch.zeros(3, 1, 9, 9).masked_fill(~causal, torch.finfo(torch.float32).min)
    expected = donor(ids, attention_mask=blocked).logits
    torch.testing.assert_close(model.decoder(ids)[..., :40], expected, **CLOSE)


def test_what_bert_has_not_stays_newly_initialized(tmp_path: Path) -> None:
    untouched, model = new_model(), new_model()
    load_bert(model, saved(bert(), tmp_path / "bert"))
    before, after = dict(untouched.named_parameters()), dict(model.named_parameters())
    stayed = {name for name in before if before[name].equal(after[name])}
    expected = {name for name in before if "cross_attention" in name or not name.startswith("text_")}
    # A BertModel brings no language head.
    expected |= {name for name in before if name.startswith(("text_proj", "text_decoder.head"))}
    assert stayed == expected
    words = "text_encoder.embeddings.word.weight"
    assert after[words][40:].equal(before[words][40:])
    assert not after[words][:40].isclose(before[words][:40]).any(1).all()
    assert model.decoder.head.word is model.encoder.embeddings.word, "sharing is as before"
    for mine, other in zip(model.encoder.text_blocks, model.decoder.transformer.text_blocks, strict=True):
        assert mine.self_attention.qkv.weight.equal(other.self_attention.qkv.weight)
        assert mine.self_attention.qkv.weight.data_ptr() != other.self_attention.qkv.weight.data_ptr()


def test_a_model_that_only_matches_takes_it_too(tmp_path: Path) -> None:
    donor, model = bert(BertForMaskedLM), new_model(decoder=False)
    load_bert(model, saved(donor, tmp_path / "bert"))
    ids, mask = texts()
    expected = donor.bert(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(model.encoder(ids, mask)[mask], expected[mask], **CLOSE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "width 64 against 32"),
        ({"num_hidden_layers": 3}, "depth 3 against 2"),
        ({"num_attention_heads": 2}, "num_heads 2 against 4"),
        ({"intermediate_size": 64, "max_position_embeddings": 20}, "inner_width 64 against 48, max_positions 20"),
        ({"vocab_size": 50}, "has embeddings of 50 tokens and the tokenizer has 42; take its own tokenizer"),
        ({"hidden_act": "relu"}, "computes with relu"),
    ],
)
def test_other_sizes_are_reported(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_bert(new_model(), saved(bert(**changes), tmp_path / "bert"))


def test_what_is_no_bert_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nothing"):
        load_bert(new_model(), str(tmp_path / "nothing"))
    RobertaModel(RobertaConfig(**SIZES)).save_pretrained(tmp_path / "roberta")
    with pytest.raises(UserError, match="of the kind roberta"):
        load_bert(new_model(), str(tmp_path / "roberta"))
    folder = tmp_path / "cut"
    saved(bert(), folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_bert(new_model(), str(folder))
