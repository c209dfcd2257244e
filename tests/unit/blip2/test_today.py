"""The recipes of today's parts, with small stand-ins in the same formats: built, trained, opened again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_blip2 import PIXELS, spread, write_language

from openblip.checkpoints.blip2_hf_write import write_transformers
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config
from openblip.models.configs import QFormerConfig
from openblip.recipes.catalogue import recipe_named
from openblip.tasks.config import RunConfig
from openblip.tasks.training import run_training

DATA = f"world:train?n=16&size={PIXELS}"


def write_today(folder: Path, kind: str) -> Path:
    """A small Gemma 3 or Qwen 3 with the tokenizer of the other small models."""
    write_language(folder, "llama")
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    sizes |= {"intermediate_size": 64, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    sizes |= {"vocab_size": 40, "pad_token_id": 0, "tie_word_embeddings": True, "max_position_embeddings": 64}
    torch.manual_seed(5)
    made: Any = (
        transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes))
        if kind == "gemma3"
        else transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    )
    spread(made, 0.3)
    made.save_pretrained(folder)
    return folder


def small(config: RunConfig) -> RunConfig:
    """The recipe with a small Q-Former, on few images, for two steps."""
    train = replace(config.train, max_steps=2, device="cpu", precision="float32", trackers=(), checkpoint_every=2)
    sizes = QFormerConfig(num_queries=4, width=32, depth=2, num_heads=4, inner_width=64, memory_width=32)
    return replace(
        config, text_pretrained="", vocab_size=200, qformer=sizes, batch_size=8, num_workers=0, train=train
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tower = tmp_path_factory.mktemp("blip") / "model"
    words = TextTokenizer.train(["a red circle left of a blue square"], vocab_size=60)
    save_model(tower, StoredModel(Blip(blip_config("nano", vocab_size=words.vocab_size, image_size=PIXELS)), words))
    out = tmp_path_factory.mktemp("runs") / "stage1"
    recipe = recipe_named("blip2-today-stage1")
    run_training(small(recipe.config((DATA,), vision=f"openblip:{tower}")), out, show=False)
    return out / "model"


@pytest.mark.parametrize("kind", ["gemma3", "qwen3"])
def test_both_stages_run(first: Path, kind: str, tmp_path: Path) -> None:
    language = write_today(tmp_path / kind, kind)
    config = recipe_named("blip2-today-stage2").config((DATA,), model=str(first), language=str(language))
    run_training(small(config), tmp_path / "stage2", show=False)
    stored = open_model(tmp_path / "stage2" / "model")
    assert type(stored.model.llm.hf).__name__.lower().startswith(kind)
    assert stored.model.llm.config.bos == stored.model.config.language.bos == "first"
    assert stored.model.llm.config.dtype != "auto"
    with pytest.raises(UserError, match=r"language\.bos=none"):
        write_transformers(tmp_path / "hf", stored, None)
