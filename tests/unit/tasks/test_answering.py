"""Written and ranked answers against a model that reads one image, one question and one answer at a time."""

from __future__ import annotations

import math

import pytest
import small
import torch

from openblip.core.tokenizer import TextTokenizer
from openblip.data.clean import clean_question
from openblip.generation.config import DecodeConfig
from openblip.models.layers import ImageMemory
from openblip.models.pixels import normalize
from openblip.models.vqa import BlipVqa
from openblip.tasks.answering import encode_questions
from openblip.tasks.families.blip import VqaAdapter
from openblip.tasks.results import Answered

GREEDY = DecodeConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def vqa() -> BlipVqa:
    return small.vqa_model()


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return small.vqa_tokenizer()


def asked(vqa: BlipVqa, tokenizer: TextTokenizer, rows: list[int], questions: list[str]) -> ImageMemory:
    """The states of `questions`, equally many for each of the images `rows`."""
    images = small.batch([0, 1, 2]).images[rows]
    with torch.no_grad():
        memory = vqa.remember(vqa.encode_image(normalize(images)))
    return VqaAdapter(vqa, tokenizer).read(memory, encode_questions(tokenizer, questions))


@torch.no_grad()
def log_prob(vqa: BlipVqa, tokenizer: TextTokenizer, read: ImageMemory, answer: str) -> float:
    """Of an answer to the one question of `read`, token by token."""
    ids = tokenizer.encode([answer], first="dec").input_ids[0].tolist()
    total = 0.0
    for place in range(1, len(ids)):
        logits = vqa.text_decoder(torch.tensor([ids[:place]]), memory=read)[0, -1]
        total += float(logits.log_softmax(-1)[ids[place]])
    return total


def test_questions_are_read_as_in_training(tokenizer: TextTokenizer) -> None:
    tokens = encode_questions(tokenizer, ["What is, U.S. red?!", "birds"])
    plain = tokenizer.encode(["what is, us red?", "birds"], first="enc")
    assert torch.equal(tokens.input_ids, plain.input_ids)
    assert (tokens.input_ids[:, 0] == tokenizer.enc_id).all()
    long = encode_questions(tokenizer, ["birds " * 80])
    assert long.input_ids.shape == (1, 35)
    assert long.input_ids[0, -1] == tokenizer.sep_id
    assert clean_question("Is  it (red)?", simplify=False) == "Is it (red)?"
    assert torch.equal(encode_questions(tokenizer, ["two  dogs"], clean="none").input_ids[0],
                       tokenizer.encode(["two  dogs"], first="enc").input_ids[0])  # fmt: skip


def test_greedy_answers_token_by_token(vqa: BlipVqa, tokenizer: TextTokenizer) -> None:
    """Two questions for each of three images, of unequal lengths: as each alone."""
    questions = [small.QUESTIONS[i % 4] for i in range(6)]
    together = VqaAdapter(vqa, tokenizer).answers(asked(vqa, tokenizer, [0, 1, 2], questions), GREEDY)
    found = set()
    for row, ((answer,), question) in enumerate(zip(together, questions, strict=True)):
        read = asked(vqa, tokenizer, [row // 2], [question])
        ids = [tokenizer.dec_id]
        while len(ids) <= GREEDY.max_new_tokens and ids[-1] != tokenizer.sep_id:
            with torch.no_grad():
                ids.append(int(vqa.text_decoder(torch.tensor([ids]), memory=read)[0, -1].argmax()))
        assert answer.text == tokenizer.decode(ids[1:])
        assert answer.probability == pytest.approx(math.exp(answer.log_prob))
        assert 0 < answer.probability < 1
        found.add(answer.text)
    assert len(found) > 1, "the questions differ"


def test_several_written_answers_have_their_own_probability(vqa: BlipVqa, tokenizer: TextTokenizer) -> None:
    read = asked(vqa, tokenizer, [0, 1], list(small.QUESTIONS[:2]))
    beams = DecodeConfig(num_beams=3, num_sequences=3, max_new_tokens=5)
    for answers in VqaAdapter(vqa, tokenizer).answers(read, beams):
        assert len(answers) == 3
        expected = [math.exp(answer.log_prob) for answer in answers]
        assert [answer.probability for answer in answers] == pytest.approx(expected, abs=1e-5)
        assert 0 < sum(expected) < 1


@pytest.mark.parametrize("keep", [2, 6, 100])
def test_ranked_answers_against_brute_force(vqa: BlipVqa, tokenizer: TextTokenizer, keep: int) -> None:
    questions = list(small.QUESTIONS)
    ranked = VqaAdapter(vqa, tokenizer).rank(asked(vqa, tokenizer, [0, 1], questions), small.ANSWERS, keep=keep)
    for row, (answers, question) in enumerate(zip(ranked, questions, strict=True)):
        read = asked(vqa, tokenizer, [row // 2], [question])
        with torch.no_grad():
            first = vqa.text_decoder(torch.tensor([[tokenizer.dec_id]]), memory=read)[0, -1]
        starts = [int(tokenizer.encode([text], first="dec").input_ids[0, 1]) for text in small.ANSWERS]
        kept = sorted(small.ANSWERS, key=lambda text, s=starts, f=first: -float(f[s[small.ANSWERS.index(text)]]))
        expected = {text: log_prob(vqa, tokenizer, read, text) for text in kept[:keep]}
        assert [answer.text for answer in answers] == sorted(expected, key=lambda text: -expected[text])
        assert [a.log_prob for a in answers] == pytest.approx([expected[a.text] for a in answers], abs=1e-3)
        assert sum(answer.probability for answer in answers) == pytest.approx(1.0, abs=1e-5)
        assert Answered(question, answers).text == answers[0].text


def test_padding_can_be_read_as_the_reference_does(vqa: BlipVqa, tokenizer: TextTokenizer) -> None:
    images = small.batch([0, 1]).images
    with torch.no_grad():
        memory = vqa.remember(vqa.encode_image(normalize(images)))
    tokens = encode_questions(tokenizer, [small.QUESTIONS[0], small.QUESTIONS[2]])
    assert not tokens.attention_mask.all()
    assert VqaAdapter(vqa, tokenizer).read(memory, tokens).mask is tokens.attention_mask
    like = VqaAdapter(vqa, tokenizer, {"like": "transformers"})
    assert like.read(memory, tokens).mask is None
