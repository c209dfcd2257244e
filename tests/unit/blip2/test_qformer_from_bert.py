"""A newly initialized Q-Former started from a BERT: its text side gives BERT's values, its queries begin as the
text does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_blip2 import PIXELS, TEXTS, spread, write_bert_words

from openblip.checkpoints import bert as bert_module
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sources.open import open_source
from openblip.models.configs import QFormerSettings, VisionConfig
from openblip.models.qformer import QFormer
from openblip.recipes.small import small_stage1
from openblip.tasks.config import RunConfig
from openblip.tasks.families.blip2_build import build
from openblip.tasks.sketch import sketch

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""the same sums of float32 in another order"""
QUERIES = QFormerSettings(num_queries=4, dropout=0.0)
SIZES = replace(QUERIES, width=32, depth=2, num_heads=4, inner_width=48, max_positions=64, layer_norm_eps=1e-6)
"""those of the BERT"""
SEED = 5


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it: weights with a language head, and a tokenizer without [DEC]."""
    folder = tmp_path_factory.mktemp("bert")
    vocab_size = write_bert_words(folder)
    torch.manual_seed(1)
    donor = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64, layer_norm_eps=1e-6,
        )
    )  # fmt: skip
    spread(donor, 0.2)
    donor.save_pretrained(folder)
    return folder


def run(bert: Path, **changes: Any) -> RunConfig:
    data = (f"world:train?n=4&size={PIXELS}",)
    own = VisionConfig(image_size=PIXELS, patch_size=8, width=32, depth=1, num_heads=2, final_norm=False)
    config = small_stage1(data, model="nano")
    vision = replace(config.vision, source="own", own=own, drop_layers=0)
    settings = {"qformer": QUERIES, "vision": vision, "text_pretrained": str(bert), **changes}
    return replace(config, **settings)


def built(config: RunConfig, out: Path) -> Any:
    torch.manual_seed(SEED)
    return build(config, [open_source(source) for source in config.sources], out)


def test_its_text_side_is_bert(bert: Path, tmp_path: Path) -> None:
    made = built(run(bert), tmp_path)
    assert isinstance(made.tokenizer, TextTokenizer)
    qformer: QFormer = made.model.qformer.eval()
    donor = transformers.BertForMaskedLM.from_pretrained(bert).eval()
    known = donor.config.vocab_size
    assert qformer.config.vocab_size == made.tokenizer.vocab_size > known
    text = made.tokenizer.encode(TEXTS[:3])
    with torch.no_grad():
        expected = donor.bert(text.input_ids, attention_mask=text.attention_mask.long()).last_hidden_state
        hidden = qformer.read_text(text.input_ids, text.attention_mask)
        real = text.attention_mask
        torch.testing.assert_close(hidden[real], expected[real], **CLOSE)
        assert qformer.head is not None
        torch.testing.assert_close(qformer.head(hidden)[real][:, :known], donor.cls(expected)[real], **CLOSE)
    for block in qformer.qformer_blocks:  # a block without text to differ by treats queries as text
        for name, value in block.query_feed_forward.state_dict().items():
            assert torch.equal(value, block.text_feed_forward.state_dict()[name]), name  # type: ignore[union-attr]


def test_what_bert_has_not_is_newly_initialized(bert: Path, tmp_path: Path) -> None:
    """Queries, heads and the row of [DEC] are as they are without a BERT; so is cross-attention, which is scaled in
    a narrow model to the standard deviation of BERT's self-attention."""
    found = []
    for name in (str(bert), ""):
        config = run(bert, qformer=SIZES, text_pretrained=name, tokenizer="" if name else str(bert))
        found.append(built(config, tmp_path).model)
    ours, plain = (dict(model.named_parameters()) for model in found)
    started = {name for name in ours if not torch.equal(ours[name], plain[name])}
    started -= {name for name in started if "cross_attention." in name and name.endswith("weight")}
    new = ("cross_attention.", "qformer.queries", "vision", "text_proj", "itm_head", "temperature")
    assert all(name.startswith("qformer.") and not any(part in name for part in new) for name in started)
    assert any("self_attention.qkv" in name for name in started)
    for name in (
        name for name in ours if "cross_attention." in name and name.endswith("weight") and "norm" not in name
    ):
        attention = ours[f"{name.rpartition('cross_attention')[0]}self_attention.qkv.weight"]
        expected = plain[name] / plain[name].std() * attention.std()
        torch.testing.assert_close(ours[name], expected, **CLOSE)
    known = transformers.AutoConfig.from_pretrained(bert).vocab_size
    assert torch.equal(ours["qformer.word.weight"][known:], plain["qformer.word.weight"][known:])
    assert not torch.equal(ours["qformer.word.weight"][:known], plain["qformer.word.weight"][:known])


def test_rows_that_its_tokenizer_does_not_name_are_refused(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "bert")
    donor = transformers.BertForMaskedLM.from_pretrained(folder)
    known = donor.config.vocab_size
    donor.resize_token_embeddings(known + 30)
    donor.save_pretrained(folder)
    words = f"of {known + 30} tokens and the tokenizer has {known + 2}; .*resize_token"
    with pytest.raises(UserError, match=words):
        built(run(folder), tmp_path)
    donor.resize_token_embeddings(known)
    donor.save_pretrained(folder)
    assert built(run(folder), tmp_path).model.qformer.config.vocab_size == known + 2


def test_its_sizes_are_those_of_the_bert(bert: Path, tmp_path: Path) -> None:
    """Whatever the size that the recipe names; the number of queries is the recipe's own."""
    small = built(run(bert, model="micro", qformer=QFormerSettings()), tmp_path)
    sizes, known = small.model.qformer.config, transformers.AutoConfig.from_pretrained(bert).vocab_size
    assert [getattr(sizes, name) for name in bert_module.SIZES] == [32, 2, 4, 48, 64, 1e-6]
    assert (sizes.num_queries, sizes.memory_width, sizes.vocab_size) == (16, 32, known + 2)
    assert sizes.pad_id == small.tokenizer.pad_id
    assert small.begun == [
        f"Q-Former from {bert.name}: 2 layers, 32 wide, vocabulary {known}; taken: embeddings, self-attention, "
        "text feed-forward (also into the queries' feed-forward, as in the reference), "
        "the language head's transform; drawn: queries, cross-attention of layer 0, projections of ITC, "
        "the ITM head"
    ]


def test_a_bert_alone_in_a_pickled_file(bert: Path, tmp_path: Path) -> None:
    """As sentence-transformers' older folders are: no language head, names without "bert.", pytorch_model.bin."""
    donor = transformers.BertModel.from_pretrained(bert, add_pooling_layer=False)
    folder = Path(shutil.copytree(bert, tmp_path / "sentences"))
    (folder / "model.safetensors").unlink()
    torch.save(donor.state_dict(), folder / "pytorch_model.bin")
    assert all(not name.startswith("bert.") for name in donor.state_dict())
    plain, headless = (built(run(place), tmp_path) for place in (bert, folder))
    assert headless.begun[0].endswith("the language head's transform, projections of ITC, the ITM head")
    ours, theirs = (made.model.qformer.state_dict() for made in (headless, plain))
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert differ == {"head.inner.weight", "head.inner.bias", "head.norm.weight", "head.norm.bias", "head.bias"}

    torch.save({"word": Path("not a tensor")}, folder / "pytorch_model.bin")  # code, which is never run
    with pytest.raises(UserError, match="sentences"):
        built(run(folder), tmp_path)


def test_a_size_that_is_set_otherwise_is_refused(bert: Path, tmp_path: Path) -> None:
    """Even where it is the size that the recipe would take without a BERT."""
    config = override(run(bert, model="micro"), ["qformer.width=256"])
    with pytest.raises(UserError, match=r"has width 32 and the setting qformer.width asks for 256; leave the sett"):
        built(config, tmp_path)


def test_a_folder_that_is_not_there_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        built(run(bert, text_pretrained=str(tmp_path / "nothing"), tokenizer=str(bert)), tmp_path)


def test_from_parts_is_a_size_of_blip(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='"from-parts" is a size of BLIP; a Q-Former takes its sizes from the BERT'):
        built(run(bert, model="from-parts"), tmp_path)


def test_a_run_is_predicted_in_the_sizes_of_its_bert(bert: Path, tmp_path: Path) -> None:
    """From its config.json and tokenizer alone."""
    folder = shutil.copytree(bert, tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    step, _ = sketch(run(folder))
    wanted = {name: value.shape for name, value in built(run(bert), tmp_path / "out").model.named_parameters()}
    assert {name: value.shape for name, value in step.model.named_parameters()} == wanted
    with pytest.raises(UserError, match=r"has width 32 and the setting qformer\.width asks for 64"):
        sketch(run(folder, qformer=replace(QUERIES, width=64)))
    with pytest.raises(UserError, match='"from-parts" is a size of BLIP; a Q-Former takes its sizes from the BERT'):
        sketch(run(folder, model="from-parts"))
