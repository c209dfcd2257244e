"""What an export to another format keeps: towers without another source, questions, epsilons, what ends a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_blip2 import images, model, tokenizer, write_language
from test_store import numbers, stored

from openblip.checkpoints.blip2 import lavis_state
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.state import NOTES
from openblip.checkpoints.store import StoredModel, open_model
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.models.blip2 import Blip2
from openblip.tasks.registry import adapt


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("llm"), "opt")


@pytest.fixture(scope="module")
def answering(llm: Path) -> StoredModel:
    """A model whose Q-Former reads the question."""
    made = model(language=llm, matches=False, qformer={"writes": False})
    info = {"task": "answering", "prompt": "question {} answer"}
    return StoredModel(made, tokenizer(), info, [], LanguageTokenizer.load(llm))


def unfrozen(made: Blip2) -> Blip2:
    made.vision.config = replace(made.vision.config, trained=True)
    made.vision.encoder.requires_grad_(True)
    made.config = replace(made.config, vision=made.vision.config)
    return made


@torch.no_grad()
def likelihoods(found: StoredModel) -> list[float]:
    adapter: Any = adapt(found)
    memory = adapter.remember(adapter.model.encode_image(images(2)))
    ranked = adapter.rank(adapter.ask(memory, ["what is a dog", "the road"]), ["two dogs", "a red bus"])
    return [answer.log_prob for row in ranked for answer in row]


@pytest.mark.parametrize("trained", [False, True])
def test_a_tower_without_another_source_goes_to_lavis_and_comes_back(
    tmp_path: Path, llm: Path, trained: bool
) -> None:
    made = model(language=llm, matches=False, qformer={"vocab_size": None, "writes": False})
    before = stored(unfrozen(made) if trained else made, llm)
    state = torch.load(convert_model(before, tmp_path / "a.pth", to="blip"), weights_only=True)["model"]
    assert "visual_encoder.blocks.1.attn.q_bias" in state
    assert "visual_encoder.blocks.1.attn.qkv.bias" not in state
    after = open_model(tmp_path / "a.pth", language=str(llm))
    assert torch.equal(numbers(after.model), numbers(made))
    again = open_model(convert_model(after, tmp_path / "b.pth", to="blip"), language=str(llm))
    assert torch.equal(numbers(again.model), numbers(made))


def test_a_model_that_reads_questions_goes_to_lavis_and_not_to_transformers(
    tmp_path: Path, llm: Path, answering: StoredModel
) -> None:
    wanted = likelihoods(answering)
    convert_model(answering, tmp_path / "a.pth", to="blip")
    after = open_model(tmp_path / "a.pth", language=str(llm), tokenizer=answering.tokenizer)
    assert (after.info["task"], after.info["prompt"]) == ("answering", "question {} answer")
    assert likelihoods(after) == wanted
    with pytest.raises(UserError, match="reads the question alone, where transformers' InstructBLIP"):
        convert_model(answering, tmp_path / "theirs", to="transformers")


def test_another_end_comes_back(tmp_path: Path, llm: Path, answering: StoredModel) -> None:
    convert_model(answering, tmp_path / "a.pth", to="blip")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    words, options = answering.tokenizer, {"language": str(llm)}
    assert open_model(tmp_path / "a.pth", tokenizer=words, **options).language_tokenizer.end == ""
    loaded[NOTES]["end"] = "dogs"
    torch.save(loaded, tmp_path / "b.pth")
    assert open_model(tmp_path / "b.pth", tokenizer=words, **options).language_tokenizer.end == "dogs"


def test_a_language_model_that_lacks_a_tensor_is_refused(tmp_path: Path, llm: Path) -> None:
    made = model(language=llm, matches=False, qformer={"vocab_size": None, "writes": False})
    state = lavis_state(made) | {f"opt_model.{k}": v for k, v in made.llm.hf.state_dict().items()}
    for change, message in (
        ({}, ""),
        ({"opt_model.lm_head.weight": None}, ""),
        ({"opt_model.model.decoder.layers.0.fc1.bias": None}, r'no "model\.decoder\.layers\.0\.fc1\.bias"'),
        ({"opt_model.model.decoder.layers.0.fc1.bias": torch.zeros(3)}, r"has shape \(3,\), not \(64,\)"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        torch.save({"model": changed, NOTES: {"text_heads": 4, "vision_heads": 2, "end": ""}}, tmp_path / "a.pth")
        if message:
            with pytest.raises(UserError, match=message):
                open_model(tmp_path / "a.pth", language=str(llm))
        else:
            assert torch.equal(numbers(open_model(tmp_path / "a.pth", language=str(llm)).model), numbers(made))


def test_epsilons_come_back(tmp_path: Path) -> None:
    made = model(vision_norm_eps=1e-3, qformer={"layer_norm_eps": 1e-4})
    convert_model(stored(made), tmp_path / "a.pth", to="blip")
    after = open_model(tmp_path / "a.pth", tokenizer=tokenizer())
    assert torch.equal(numbers(after.model), numbers(made))
    with pytest.raises(UserError, match=r"one epsilon for all LayerNorms .* 1e-06 in it and 0\.001 after it"):
        convert_model(stored(made), tmp_path / "theirs", to="transformers")
    usual = model()
    assert usual.config.vision_norm_eps == 1e-5
    convert_model(stored(usual), tmp_path / "theirs", to="transformers")
    assert torch.equal(numbers(open_model(tmp_path / "theirs").model), numbers(usual))
