"""BLIP-2 in use: captions, answers, matching, embeddings, search; batches, prompts, likelihoods, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_blip2 import Kind, make_image, model, tokenizer, write_language
from test_store import stored

import openblip
from openblip.checkpoints.store import save_model
from openblip.cli.caption import check_recorded
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.generation.config import DecodeConfig
from openblip.models import replay
from openblip.models.replay import FixedStates
from openblip.tasks.families.blip2 import Blip2Adapter
from openblip.tasks.predictor import Predictor
from tests.recorder import Recorder

KINDS: tuple[Kind, ...] = ("opt", "llama", "t5")
IMAGES = [make_image(i) for i in range(3)]


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Predictor]:
    made: dict[str, Predictor] = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        llm = write_language(folder / "llm", kind)
        save_model(folder / "m", stored(model(language=llm, matches=False, qformer={"vocab_size": None}), llm))
        made[kind] = openblip.load(folder / "m", device="cpu", dtype="float32", batch_size=2)
        assert isinstance(made[kind].adapter, Blip2Adapter)
    return made


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("matcher")
    save_model(folder / "m", stored(model()))
    found = openblip.load(folder / "m", device="cpu", dtype="float32", batch_size=2)
    assert isinstance(found.adapter, Blip2Adapter)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_captions_do_not_depend_on_the_batch(writers: dict[str, Predictor], kind: str) -> None:
    predictor = writers[kind]
    config = DecodeConfig(num_beams=3, num_sequences=2, max_new_tokens=5)
    prompts = ["a photo of", "what is", "the"]
    together = predictor.caption(IMAGES, config, prompt=prompts)
    for number in range(3):
        (alone,) = predictor.caption(IMAGES[number], config, prompt=prompts[number])
        assert [c.text for c in alone] == [c.text for c in together[number]]
        assert [c.log_prob for c in alone] == pytest.approx([c.log_prob for c in together[number]], abs=1e-4)
        assert all(c.num_tokens <= 5 for c in alone)
    sampled = DecodeConfig(sample=True, num_sequences=2, max_new_tokens=5, seed=3)
    assert predictor.caption(IMAGES[0], sampled) == predictor.caption(IMAGES[0], sampled)
    with pytest.raises(UserError, match="2 prompts, but more images"):
        predictor.caption(IMAGES, prompt=["a", "the"])


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_write_the_same(
    writers: dict[str, Predictor], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions and answers; an encoder-decoder's steps are computed as they are written."""
    monkeypatch.setattr(replay, "record", recorder := Recorder())
    predictor, config = writers[kind], DecodeConfig(num_beams=3, max_new_tokens=6)
    adapter = predictor.adapter

    def written() -> list[Any]:
        captions = predictor.caption(IMAGES, config)
        answers = predictor.answer(IMAGES[0], ["what is a dog", "where"], config=config)
        return [
            [c.text for own in captions for c in own],
            [a.text for own in answers for one in own for a in one.answers],
        ]

    expected = written()
    monkeypatch.setattr(adapter, "states", FixedStates())
    assert written() == expected
    assert written() == expected
    assert (recorder.recorded > 0) == (recorder.replayed > 0) == (kind != "t5") == adapter.records_steps
    if kind == "t5":
        with pytest.raises(UserError, match="decoders that are not quantized, and this is a BLIP-2 model"):
            check_recorded(predictor)
    else:
        check_recorded(predictor)


def test_the_commands_decode_as_the_family_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without options as in Python; what is given takes its place alone."""
    llm = write_language(tmp_path / "llm", "opt")
    save_model(tmp_path / "m", stored(model(language=llm, matches=False, qformer={"vocab_size": None}), llm))
    IMAGES[0].save(tmp_path / "1.png")
    seen: list[DecodeConfig] = []

    def generate(adapter: Blip2Adapter, memory: Any, config: DecodeConfig, *more: Any) -> Any:
        seen.append(config)
        return [[]]

    monkeypatch.setattr(Blip2Adapter, "generate", generate)
    command = ["caption", str(tmp_path / "1.png"), "--model", str(tmp_path / "m"), "--device", "cpu"]
    assert main(command) == 0
    assert seen.pop() == Blip2Adapter.captioning
    assert main([*command, "--max-new-tokens", "7", "--no-repeat-ngram", "3"]) == 0
    assert seen.pop() == replace(Blip2Adapter.captioning, max_new_tokens=7, no_repeat_ngram=3)
    assert main([*command, "--max-new-tokens", "7", "--min-new-tokens", "7"]) == 0
    assert seen.pop() == replace(Blip2Adapter.captioning, max_new_tokens=7, min_new_tokens=7)
    assert main([*command, "--num-captions", "6"]) == 0
    assert seen.pop() == replace(Blip2Adapter.captioning, num_beams=6, num_sequences=6)
    assert main([*command, "--nucleus", "0.9", "--min-new-tokens", "4"]) == 0
    assert seen.pop() == DecodeConfig(sample=True, top_p=0.9, min_new_tokens=4, max_new_tokens=30)
    capfd.readouterr()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_as_likely_as_it_says(writers: dict[str, Predictor], kind: str) -> None:
    predictor = writers[kind]
    written = predictor.caption(IMAGES, DecodeConfig(num_beams=3, max_new_tokens=6))
    for one, (caption,) in zip(IMAGES, written, strict=True):
        if caption.complete and caption.text:
            (likelihood,) = predictor.log_likelihood(one, [caption.text])[0]
            if likelihood.num_tokens == caption.num_tokens:  # no unknown word, which is written as nothing
                assert likelihood.log_prob == pytest.approx(caption.log_prob, abs=1e-3)
    ranked = predictor.rank_captions(IMAGES[0], ["two dogs", "a red bus on a road", "birds"])[0]
    assert [r.log_prob for r in ranked] == sorted((r.log_prob for r in ranked), reverse=True)
    assert sum(r.probability for r in ranked) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_written_and_ranked(writers: dict[str, Predictor], kind: str) -> None:
    predictor = writers[kind]
    questions = ["what is a dog", "what is the road"]
    found = predictor.answer(IMAGES, questions)
    assert [[a.question for a in row] for row in found] == [questions] * 3
    candidates = ["two dogs", "a red bus", "birds"]
    ranked = predictor.answer(IMAGES, questions, candidates)
    for number in range(3):
        for place, question in enumerate(questions):
            (alone,) = predictor.answer(IMAGES[number], question, candidates)[0]
            assert [a.text for a in alone.answers] == [a.text for a in ranked[number][place].answers]
            assert {a.text for a in alone.answers} == set(candidates)
            prompt = predictor.adapter.question_prompt.replace("{}", question)
            scored = predictor.log_likelihood(IMAGES[number], candidates, prompt=prompt)[0]
            assert alone.text == max(scored, key=lambda s: s.log_prob).text
    own = predictor.answer(IMAGES, [["what is a dog"], ["the"], ["a cat"]])
    assert [len(row) for row in own] == [1, 1, 1]
    with pytest.raises(UserError, match="no answers to choose from"):
        predictor.answer(IMAGES, questions, [])


def test_matching_is_itm_and_the_best_query(matcher: Predictor) -> None:
    texts = ["a red bus", "two dogs", "a long chair"]
    together = matcher.match(IMAGES, texts)
    made = matcher.model
    for number in range(3):
        (alone,) = matcher.match(IMAGES[number], texts)
        for a, b in zip(alone, together[number], strict=True):
            assert (a.itm_probability, a.itc_similarity) == pytest.approx(
                (b.itm_probability, b.itc_similarity), abs=1e-5
            )
    images, words = matcher.embed_images(IMAGES), matcher.embed_texts(texts)
    assert images.shape == (3, 4, 16)
    assert images.norm(dim=-1) == pytest.approx(torch.ones(3, 4), abs=1e-5)
    best = torch.einsum("iqe,ce->icq", images, words).amax(-1)
    assert best.tolist() == pytest.approx(
        torch.tensor([[m.itc_similarity for m in row] for row in together]), abs=1e-5
    )
    tokens = tokenizer().encode(texts)
    batch = next(iter(matcher.whole(IMAGES[:1])))
    memory = made.remember(matcher.encode(batch))
    with torch.no_grad():
        logits = made.match(tokens.input_ids, tokens.attention_mask, memory).softmax(1)[:, 1]
    assert [m.itm_probability for m in together[0]] == pytest.approx(logits.tolist(), abs=1e-5)


def test_search_by_itc_and_itm(matcher: Predictor) -> None:
    texts = ["a red bus", "two dogs", "a long chair"]
    matches = matcher.match(IMAGES, texts)
    (found,) = matcher.retrieve_images(IMAGES, ["two dogs"], top=3, rerank_k=0)
    expected = sorted(range(3), key=lambda i: -matches[i][1].itc_similarity)
    assert [f.itc_similarity for f in found] == pytest.approx(
        [matches[i][1].itc_similarity for i in expected], abs=1e-5
    )
    (found,) = matcher.retrieve_images(IMAGES, ["two dogs"], top=3, rerank_k=3)
    for f in found:
        match = min((row[1] for row in matches), key=lambda m: abs(m.itc_similarity - f.itc_similarity))
        assert f.itm_probability == pytest.approx(match.itm_probability, abs=1e-5)
    listed = matcher.retrieve_texts(IMAGES[0], texts, top=2, rerank_k=3)
    assert len(listed) == 2
    assert listed[0].score >= listed[1].score


def test_features(matcher: Predictor, writers: dict[str, Predictor]) -> None:
    plain = matcher.features(IMAGES)
    assert matcher.features([]).shape == (0, *plain.shape[1:])
    seen = matcher.features(IMAGES, ["a red bus", "two dogs", "birds"])
    assert plain.shape == seen.shape == (3, 4, 32)
    assert not torch.allclose(plain, seen)
    assert writers["opt"].features(IMAGES).shape == (3, 4, 32)
    with pytest.raises(UserError, match="one text for each"):
        matcher.features(IMAGES, ["a red bus"])


def test_stage_1_captions_with_its_own_head(matcher: Predictor) -> None:
    written = matcher.caption(IMAGES, DecodeConfig(max_new_tokens=5))
    assert [len(row) for row in written] == [1, 1, 1]
    alone = matcher.caption(IMAGES[1], DecodeConfig(max_new_tokens=5))
    assert alone[0][0].text == written[1][0].text


def test_dtypes(tmp_path: Path) -> None:
    save_model(tmp_path / "m", stored(model()))
    half = openblip.load(tmp_path / "m", device="cpu", dtype="bfloat16")
    assert half.model.qformer.queries.dtype == torch.bfloat16
    (match,) = half.match(IMAGES[0], ["a red bus"])[0]
    assert 0 <= match.itm_probability <= 1


def test_what_a_model_cannot_do_is_said(matcher: Predictor, writers: dict[str, Predictor]) -> None:
    calls: list[tuple[Any, str]] = [
        (
            lambda: matcher.answer(IMAGES, "what is it"),
            "answers need .* or a BLIP-2 model of stage 2",
        ),
        (lambda: matcher.log_likelihood(IMAGES, "a dog"), "or a BLIP-2 model of stage 2"),
        (lambda: writers["opt"].match(IMAGES, "a dog"), "matching needs .* a BLIP-2 model of stage 1"),
        (lambda: writers["opt"].embed_images(IMAGES), "embeddings need .* a BLIP-2 model of stage 1"),
        (lambda: matcher.judge(IMAGES, IMAGES, "two dogs"), "NLVR2"),
        (lambda: matcher.match(IMAGES, "a " * 40), "and the model takes 32"),
        (lambda: writers["opt"].caption(IMAGES, prompt="a " * 70), "shorten the prompt"),
    ]
    for call, words in calls:
        with pytest.raises(UserError, match=words):
            call()
