"""Settings that cannot work, or would have no effect, are refused before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import small

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.arguments import decoding
from openblip.cli.evaluate import decoding_of
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.recipes.blip import caption_finetune, retrieval_finetune
from openblip.tasks.config import RunConfig
from openblip.tasks.families.blip import BlipAdapter
from openblip.tasks.registry import adapt
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.training import set_up

DATA = (f"world:train?n=6&size={small.PIXELS}",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("validation_samples=0", "validation_samples must be at least 1, not 0"),
        ("max_words=-1", "max_words must be at least 1, not -1"),
        ("max_words=0", "max_words must be at least 1, not 0"),
        ("vocab_size=0", "vocab_size must be at least 1, not 0"),
        ("rerank_k=-1", "rerank_k cannot be negative, and is -1"),
        ("rerank_memory=-1", "rerank_memory cannot be negative, and is -1"),
        ("train.seed=99999999999999999999999", r"seed must be below 2\*\*63"),
        ("rerank_k=0", r'train\.monitor "mean_recall_itm" is measured by ITM, which rerank_k = 0 leaves out'),
    ],
)
def test_settings_out_of_range(setting: str, message: str) -> None:
    config = retrieval_finetune(DATA, model="nano", validation=DATA)
    with pytest.raises(UserError, match=message):
        override(config, (setting,))


def test_what_monitors_no_itm_may_leave_it_out() -> None:
    config = retrieval_finetune(DATA, model="nano", validation=DATA)
    assert override(config, ("train.monitor=t2i_recall@1", "rerank_k=0", "max_words=none")).rerank_k == 0
    assert override(config, ("train.seed=9223372036854775807",)).train.seed == 2**63 - 1


@pytest.mark.parametrize("recipe", [caption_finetune, retrieval_finetune])
def test_texts_longer_than_the_model_reads(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    small_one = ("tokenizer=train", f"image_size={small.PIXELS}", "num_workers=0")
    made = override(recipe(DATA, model="nano", validation=()), small_one)
    with pytest.raises(UserError, match="max_length is 65, and the model reads texts of at most 64 tokens"):
        set_up(override(made, ("max_length=65",)), tmp_path)
    set_up(override(made, ("max_length=64",)), tmp_path)


def test_one_image_has_the_recall_that_recipes_monitor() -> None:
    adapter = BlipAdapter(small.model(), small.tokenizer())
    metrics = evaluate_retrieval(adapter, [small.batch([0, 0])])
    assert metrics["mean_recall_itm"] == metrics["i2t_mean_recall_itm"] == 1.0
    assert "itm_accuracy" not in metrics, "there is no other image"


def test_a_prompt_beyond_the_vocabulary_is_refused_before_training(tmp_path: Path) -> None:
    """The model could be trained, and no command would write a caption with it."""
    save_model(tmp_path / "model", StoredModel(small.model(), small.tokenizer()))
    made = override(caption_finetune(DATA, model=str(tmp_path / "model")), ("num_workers=0", "prompt=一只"))
    with pytest.raises(
        UserError, match=r'cannot begin with "一只": its vocabulary lacks part of it.*--set prompt=\)'
    ):
        set_up(made, tmp_path)
    set_up(override(made, ("prompt=",)), tmp_path)


def test_options_of_decoding_that_would_have_no_effect() -> None:
    for beams in (0, -3):
        for number in (1, 4):
            with pytest.raises(UserError, match=f"--beams must be at least 1, not {beams}"):
                decoding(beams, number)
    with pytest.raises(UserError, match="--beams and --nucleus exclude each other"):
        decoding(5, 1, 0.9)
    assert decoding(None, 1).num_beams == 3
    assert decoding(None, 2, 0.9).sample


def test_what_writes_no_text_takes_no_prompt() -> None:
    stored = StoredModel(small.model(), small.tokenizer(), {})
    matcher = adapt(StoredModel(small.model().part(encoder=True, decoder=False), small.tokenizer(), {}))
    for task, model in (("retrieval", adapt(stored)), ("classification", adapt(stored)), ("pretraining", matcher)):
        with pytest.raises(UserError, match=f"no effect: measured by {task}, the model writes no text"):
            decoding_of(model, task, (), "x")
        decoding_of(model, task, (), None)
    assert decoding_of(adapt(stored), "pretraining", (), "a red", num_beams=2)[0] == "a red"
