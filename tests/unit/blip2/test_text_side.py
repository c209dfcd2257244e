"""Questions behind a model of stage 2, whose Q-Former gets a text side to read them too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_blip2 import PIXELS, model, spread, tokenizer, write_bert_words, write_language
from test_run import TRAIN
from test_store import stored

from openblip.checkpoints.store import open_model, save_model
from openblip.core.errors import UserError
from openblip.generation.config import DecodeConfig
from openblip.models.configs import TowerConfig
from openblip.recipes.blip2 import blip2_caption, blip2_vqa
from openblip.tasks.config import RunConfig
from openblip.tasks.families.blip2_build import build
from openblip.tasks.registry import adapt
from openblip.tasks.sketch import sketch
from openblip.tasks.training import evaluate_model, run_training

QUESTIONS = (f"world:train?n=12&size={PIXELS}",)
NO_TEXT: dict[str, Any] = {"vocab_size": None, "writes": False}
TEXT_SIDE = ("text_feed_forward", "word.", "position.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of stage 1, "one", and of stage 2, "two", and a BERT of other weights, "bert"."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "one", stored(model(seed=1)))
    llm = write_language(folder / "llm")
    save_model(folder / "two", stored(model(seed=2, matches=False, qformer=NO_TEXT, language=llm)))
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "vocab_size": write_bert_words(folder / "bert"),
    }
    bert = transformers.BertModel(transformers.BertConfig(**sizes))
    spread(bert, 0.2)
    bert.save_pretrained(folder / "bert")
    return folder


def asking(folder: Path, text: str, **changes: Any) -> RunConfig:
    config = blip2_vqa(QUESTIONS, model=str(folder / "two"), validation=QUESTIONS)
    donor = str(folder / text) if text else ""
    return replace(
        config, vision=TowerConfig(), unfreeze_vision=False, text_pretrained=donor, batch_size=4, max_length=16,
        num_workers=0, train=replace(TRAIN, max_steps=2), decode=DecodeConfig(max_new_tokens=4),
        validation_samples=3, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("source", ["one", "bert"])
def test_the_text_side_is_the_donors_and_the_rest_stage_2s(folder: Path, tmp_path: Path, source: str) -> None:
    made = build(asking(folder, source), [], tmp_path)
    found, second = made.model.qformer.state_dict(), open_model(folder / "two").model.qformer.state_dict()
    new = found.keys() - second.keys()
    assert new
    assert all(any(part in name for part in TEXT_SIDE) for name in new)
    assert all(torch.equal(found[name], value) for name, value in second.items())
    if source == "one":
        first = open_model(folder / "one").model.qformer.state_dict()
        assert all(torch.equal(found[name], first[name]) for name in new)
    else:
        bert = transformers.BertModel.from_pretrained(folder / "bert")
        dense = bert.encoder.layer[1].intermediate.dense.weight
        assert any(value.shape == dense.shape and torch.equal(value, dense) for value in found.values())
    assert made.reads_questions is False, "not trained yet"
    assert made.begun == [
        f"the Q-Former of {folder / 'two'} reads questions by the embeddings and the text feed-forwards of "
        f"{folder / source}"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"qformer": {"vocab_size": tokenizer().vocab_size - 1}},  # LAVIS' files have no [ENC]
        {"qformer": {"num_queries": 7}},
        {"qformer": {"cross_attention_every": 1}},
    ],
    ids=["vocabulary", "queries", "cross-attention"],
)
def test_donors_that_differ_in_the_rest(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    save_model(tmp_path / "donor", stored(model(seed=4, **changes)))
    made = build(replace(asking(folder, "one"), text_pretrained=str(tmp_path / "donor")), [], tmp_path)
    first = open_model(tmp_path / "donor").model.qformer
    assert torch.equal(made.model.qformer.word.weight, first.word.weight)
    assert made.model.qformer.queries.shape == (1, 4, 32)
    assert made.tokenizer.vocab_size == tokenizer().vocab_size


def test_it_is_trained_and_used(folder: Path, tmp_path: Path) -> None:
    config = asking(folder, "one")
    with pytest.raises(UserError, match="max_length is 48, and the model reads texts of at most 32 tokens"):
        run_training(replace(config, max_length=48), tmp_path / "long", show=False)
    run_training(config, tmp_path / "r", show=False)
    adapter = adapt(open_model(tmp_path / "r" / "model"))
    assert adapter.reads_questions
    before, after = open_model(folder / "one").model.qformer, adapter.model.qformer
    assert not torch.equal(after.word.weight, before.word.weight)
    metrics, records = evaluate_model(config, adapter)
    right = [record["accuracy_generated"] for record in records]
    assert metrics["accuracy_generated"] == pytest.approx(sum(right) / len(right))  # type: ignore[arg-type]
    again = replace(config, model=str(tmp_path / "r" / "model"), text_pretrained="")
    assert build(again, [], tmp_path).tokenizer is not None, "and trained on without naming it again"


def test_it_is_predicted(folder: Path) -> None:
    with_side, without = (sketch(asking(folder, name))[0].model.qformer for name in ("one", ""))
    assert without.word is None
    assert with_side.word is not None


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    captions = blip2_caption(QUESTIONS, model=str(folder / "two"))
    for config, says in (
        (replace(captions, text_pretrained=str(folder / "one")), "has its Q-Former and keeps it"),
        (replace(asking(folder, "one"), model=str(folder / "one")), "has its Q-Former and keeps it"),
        (asking(folder, "two"), "reads no text; name a model of stage 1, or a BERT"),
    ):
        with pytest.raises(UserError, match=says):
            build(replace(config, vision=TowerConfig()), [], tmp_path)
    save_model(tmp_path / "deep", stored(model(qformer={"depth": 6})))
    with pytest.raises(UserError, match=r"does not fit .*: depth 6, not 4"):
        build(replace(asking(folder, "one"), text_pretrained=str(tmp_path / "deep")), [], tmp_path)
