"""Language models from text alone: what documents say, what is read and written, how answers are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openblip.checkpoints.blip2_parts import open_language, open_language_tokenizer
from openblip.core.errors import UserError
from openblip.core.files import read_jsonl
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.data.world.documents import ASKED, document, documents
from openblip.data.world.questions import Question, check_answer, questions
from openblip.data.world.scene import random_stream, sample_scene
from openblip.data.world.truth import judge
from openblip.experiments.judges.small_language import LanguageSizes
from openblip.experiments.judges.text_only import TextRunConfig, _pad, _parts, _whole, train_language
from openblip.experiments.judges.zero_shot import CHOICES, Asked, accuracy, answers, ask_about, guessing
from openblip.models.configs import as_language

ASKS = "Question: {} Answer:"
LINES = [("", "a red star"), ("Question: what color is the star? Answer:", "red")]


def small(kind: str) -> TextRunConfig:
    config = TextRunConfig(
        language=LanguageSizes(kind=kind, width=32, depth=1, num_heads=2, max_positions=64),  # type: ignore[arg-type]
        batch_size=4,
    )
    return replace(config, train=replace(config.train, max_steps=4, warmup_steps=1, checkpoint_every=2))


def test_documents_are_true_and_ask_what_can_be_told() -> None:
    described = 0
    for index in range(60):
        scene = sample_scene(3, "train", index)
        lines = document(scene, random_stream(3, "train", index, "captions"))
        known = questions(scene, np.random.default_rng(0), 200, kinds=ASKED)
        described += not lines[0].question and len(lines) == 4
        for line in lines:
            if not line.question:
                assert judge(line.text, scene).true, line.text
            for question in known:
                if question.text == line.question:
                    assert check_answer(question, line.text)
    assert 40 <= described <= 59
    assert documents(3, seed=3) == documents(3, seed=3) != documents(3, seed=4)


def test_a_decoder_reads_every_line_with_its_first_and_last_token() -> None:
    language_tokenizer = LanguageTokenizer.of_words([text for line in LINES for text in line], begins=True)
    ((read, written),) = _whole(LINES, language_tokenizer, np.random.default_rng(0))
    assert read == written
    assert language_tokenizer.hf.decode(read) == (
        "<s> a red star </s> <s> Question : what color is the star ? Answer : red </s>"
    )
    # Stage 2 and answers put the same tokens behind soft prompts.
    row = language_tokenizer.texts(["red"], prompts=[LINES[1][0]])
    assert row.input_ids[0].tolist() == read[-len(row.input_ids[0]) :]


def test_an_encoder_decoder_reads_what_was_said_and_writes_the_rest() -> None:
    language_tokenizer = LanguageTokenizer.of_words([*(text for line in LINES for text in line), "."], begins=False)
    told, asked = (
        [language_tokenizer.hf.decode(ids) for ids in row]
        for row in _parts(LINES, language_tokenizer, np.random.default_rng(0))
    )
    assert (told[0].removesuffix("</s>").strip() + " " + told[1]).strip() == "a red star </s>"
    assert asked == ["a red star . Question : what color is the star ? Answer : </s>", "red </s>"]


def test_padding_is_neither_read_nor_scored() -> None:
    batch = _pad([([5, 6, 7], [8, 2]), ([5], [2])], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[8, 2], [2, -100]]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_training_stops_and_goes_on_alike_and_leaves_a_model_of_transformers(kind: str, tmp_path: Path) -> None:
    told = [LINES, [*LINES, ("", "a star")]] * 6
    config = small(kind)
    train_language(told, config, tmp_path / "whole", show=False)
    half = replace(config, train=replace(config.train, max_steps=2))
    train_language(told, half, tmp_path / "parts", show=False)
    again = replace(config.train, schedule="constant")
    with pytest.raises(UserError, match="schedule"):
        train_language(told, replace(config, train=again), tmp_path / "parts", resume=True, show=False)
    settings = as_language(str(tmp_path / "whole" / "model"))
    llm, language_tokenizer = open_language(settings), open_language_tokenizer(settings)
    assert llm.is_encoder_decoder == (kind == "t5")
    losses = [row["loss"] for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl") if row["split"] == "train"]
    assert losses
    assert all(np.isfinite(losses))
    asked = [Asked(0, Question("what color is the star?", "colour", "red", ("red",)))] * 2
    blind = answers(llm, language_tokenizer, asked)
    assert blind[0] == blind[1]
    # Soft prompts are where the text would stand: its own embeddings in their place give the same answer.
    ids = language_tokenizer.hf("a red star")["input_ids"]
    ids = (
        [*ids[:-1], language_tokenizer.hf.convert_tokens_to_ids(".")]
        if kind == "t5"
        else [*ids, language_tokenizer.eos_id]
    )
    if kind == "t5":
        assert ids[-1] == language_tokenizer.hf.convert_tokens_to_ids(".")
    soft = llm.embed(torch.tensor([ids]))
    assert answers(llm, language_tokenizer, asked, soft=soft) == answers(
        llm, language_tokenizer, asked, told=["a red star"]
    )


def test_answers_are_counted_by_kind() -> None:
    scenes = [sample_scene(0, "test", index) for index in range(20)]
    asked = ask_about(scenes)
    assert {one.question.kind for one in asked} == set(ASKED) == set(CHOICES)
    assert accuracy(asked, [one.question.answer for one in asked]) == dict.fromkeys(("all", *ASKED), 1.0)
    wrong = accuracy(asked, ["nothing"] * len(asked))
    assert set(wrong.values()) == {0.0}
    chance = guessing(asked)
    rng = np.random.default_rng(0)
    drawn = np.mean([
        accuracy(asked, [str(rng.choice(CHOICES[one.question.kind])) for one in asked])["all"] for _ in range(60)
    ])  # fmt: skip
    assert drawn == pytest.approx(chance["all"], abs=0.03)
    assert chance["exists"] == 0.5
