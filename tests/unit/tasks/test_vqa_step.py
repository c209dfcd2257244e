"""From images with questions to the VQA loss: against one question and one answer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import small
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.data.sources.answers import GivenAnswers
from openblip.data.sources.questions import Asked, answers_of
from openblip.generation.config import DecodeConfig
from openblip.models.pixels import normalize
from openblip.models.vqa import BlipVqa
from openblip.objectives.answering import VqaObjective
from openblip.tasks.answering import (
    VqaStep,
    encode_questions,
    evaluate,
    evaluate_answers,
    prepare_questions,
    score_answer,
)
from openblip.tasks.config import AnsweringConfig, RunConfig, as_sources
from openblip.tasks.families.blip import VqaAdapter
from openblip.training.config import TrainConfig
from openblip.training.launch import check_layers
from openblip.training.optim import make_optimizer

GIVEN = (
    GivenAnswers(("two", "two", "birds"), (1 / 3, 1 / 3, 1 / 3)),
    GivenAnswers(("yes",), (1.0,)),
    GivenAnswers(("a red bus", "no"), (0.7, 0.2)),
)
UNEVEN, EVEN = [0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 2]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return small.vqa_tokenizer()


def asked(owners: Sequence[int], given: Sequence[GivenAnswers] = GIVEN) -> Batch:
    """Images with questions, `given` in turn."""
    batch = small.batch(list(owners))
    questions = [small.QUESTIONS[i % 4] for i in range(len(owners))]
    own = [[n for n, owner in enumerate(owners) if owner == image] for image in range(len(batch))]
    meta = [
        {"asked": Asked(tuple(questions[n] for n in numbers), tuple(given[n % len(given)] for n in numbers))}
        for numbers in own
    ]
    return replace(batch, texts=questions, meta=meta)


def make_step(model: BlipVqa, tokenizer: TextTokenizer, smoothing: float = 0.0) -> VqaStep:
    return VqaStep(VqaObjective(model, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id, label_smoothing=smoothing))


@torch.no_grad()
def one_by_one(model: BlipVqa, tokenizer: TextTokenizer, batch: Batch) -> float:
    """The loss, each answer read alone."""
    total = 0.0
    for question, owner in zip(batch.texts, batch.image_index.tolist(), strict=True):
        memory = model.remember(model.encode_image(normalize(batch.images[owner][None])))
        read = VqaAdapter(model, tokenizer).read(memory, encode_questions(tokenizer, [question]))
        for text, weight in answers_of(batch.meta[owner])[question].merged.items():
            ids = tokenizer.encode([text], first="dec").input_ids
            logits = model.text_decoder(ids, memory=read)[0, :-1].log_softmax(-1)
            total -= weight * float(logits.gather(1, ids[0, 1:, None]).sum())
    return total / len(batch.texts)


def test_answers_are_flattened_with_their_weights(tokenizer: TextTokenizer) -> None:
    prepared = prepare_questions(tokenizer)(asked(UNEVEN))
    texts = ["two", "birds", "yes", "a red bus", "no", "two", "birds", "yes"]
    assert torch.equal(prepared.answers.input_ids, tokenizer.encode(texts, first="dec").input_ids)
    torch.testing.assert_close(prepared.weights, torch.tensor([2 / 3, 1 / 3, 1.0, 0.7, 0.2, 2 / 3, 1 / 3, 1.0]))
    assert prepared.question_of is not None
    assert prepared.question_of.tolist() == [0, 0, 1, 2, 2, 3, 3, 4]
    assert prepared.image_of is not None
    assert prepared.image_of.tolist() == UNEVEN
    assert (prepared.questions.input_ids[:, 0] == tokenizer.enc_id).all()
    even = prepare_questions(tokenizer)(asked(EVEN, GIVEN[1:2]))
    assert even.image_of is None
    assert even.question_of is None
    assert len(prepared) == 3
    moved = prepared.to("cpu")
    assert torch.equal(moved.weights, prepared.weights)


@pytest.mark.parametrize(
    ("owners", "given"), [(UNEVEN, GIVEN), (EVEN, GIVEN), (EVEN, GIVEN[1:2]), (EVEN, GIVEN[2:]), ([0, 1], GIVEN)]
)
def test_the_loss_is_that_of_each_answer_alone(
    tokenizer: TextTokenizer, owners: list[int], given: tuple[GivenAnswers, ...]
) -> None:
    model = small.vqa_model()
    batch = asked(owners, given)
    loss = make_step(model, tokenizer)(prepare_questions(tokenizer)(batch))["loss"]
    assert float(loss.detach()) == pytest.approx(one_by_one(model, tokenizer, batch), rel=1e-4)
    smooth = make_step(model, tokenizer, smoothing=0.1)(prepare_questions(tokenizer)(batch))["loss"]
    assert float(smooth.detach()) != pytest.approx(float(loss.detach()), rel=1e-3)


def test_an_image_is_encoded_and_a_question_read_once(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small.vqa_model()
    rows: dict[str, list[int]] = {"encode_image": [], "remember": [], "remember_question": []}

    def counted(name: str) -> None:
        real = getattr(model, name)

        def call(first: Tensor, *rest: Any) -> Any:
            rows[name].append(len(first))
            return real(first, *rest)

        monkeypatch.setattr(model, name, call)

    for name in rows:
        counted(name)
    make_step(model, tokenizer)(prepare_questions(tokenizer)(asked(UNEVEN)))
    assert rows == {"encode_image": [3], "remember": [3], "remember_question": [5]}


def test_micro_batches_of_unequal_size_make_the_mean_over_all_questions(tokenizer: TextTokenizer) -> None:
    model = small.vqa_model()
    step = make_step(model, tokenizer)
    prepare = prepare_questions(tokenizer)
    parts = [asked(UNEVEN), asked([0], GIVEN[2:])]
    prepared = [prepare(part) for part in parts]
    step.count_step(prepared)
    found = sum(float(step(batch)["loss"].detach()) for batch in prepared) / 2
    each = [one_by_one(model, tokenizer, part) for part in parts]
    assert found == pytest.approx((5 * each[0] + each[1]) / 6, rel=1e-4)


def test_every_parameter_is_trained_and_has_its_depth(tokenizer: TextTokenizer) -> None:
    step = make_step(small.vqa_model(), tokenizer)
    step(prepare_questions(tokenizer)(asked(UNEVEN)))["loss"].backward()
    idle = {name for name, parameter in step.named_parameters() if parameter.grad is None}
    assert not idle
    ids = step.layer_ids()
    assert ids.keys() == {name for name, _ in step.named_parameters()}
    assert {ids[name] for name in ids if ".vision.vit.blocks.1." in name} == {2}
    assert {ids[name] for name in ids if ".text_decoder.transformer.embeddings" in name} == {0}
    make_optimizer(step, TrainConfig(layer_decay=0.5))


def test_only_blocks_without_cross_attention_are_sharded(tokenizer: TextTokenizer) -> None:
    step = make_step(small.vqa_model(), tokenizer)
    for name in ("TextBlock", "TextTransformer", "CrossAttention", "BlipVqa"):
        with pytest.raises(UserError, match=f'names "{name}", parts of which the model uses .*; name Block$'):
            check_layers((name,), step)
    check_layers(("Block",), step)
    with pytest.raises(UserError, match='did you mean "Block"'):
        check_layers(("Blocks",), step)


@pytest.mark.parametrize(
    ("prediction", "given", "score"),
    [
        ("2", GIVEN[0], 2 / 3),
        ("Birds", GIVEN[0], 1 / 3),
        ("yes", GIVEN[1], 1.0),
        ("red bus", GIVEN[2], 7 / 9),
        ("cat", GIVEN[2], 0.0),
        ("a", GivenAnswers(tuple("bbbbbbbbcc"), (0.1,) * 10), 0.0),
        ("c", GivenAnswers(tuple("bbbbbbbbcc"), (0.1,) * 10), 0.6),
    ],
)
def test_accuracy_is_that_of_vqa_or_the_share_of_the_weights(
    prediction: str, given: GivenAnswers, score: float
) -> None:
    assert score_answer(prediction, given) == pytest.approx(score)


def test_evaluation_answers_every_question_both_ways(tokenizer: TextTokenizer) -> None:
    model = small.vqa_model()
    greedy = DecodeConfig(max_new_tokens=5)
    batches = [asked(UNEVEN), asked([0, 1, 1], GIVEN[1:])]
    candidates = ["two", "a red bus", "cat"]
    metrics, records = evaluate_answers(
        VqaAdapter(model, tokenizer), batches, greedy, candidates=candidates, max_rows=2
    )
    expected: dict[str, list[float]] = {"generated": [], "ranked": [], "most": []}
    for batch in batches:
        for question, owner in zip(batch.texts, batch.image_index.tolist(), strict=True):
            memory = model.remember(model.encode_image(normalize(batch.images[owner][None])))
            read = VqaAdapter(model, tokenizer).read(memory, encode_questions(tokenizer, [question]))
            right = answers_of(batch.meta[owner])[question]
            record = records[len(expected["most"])]
            assert (record["key"], record["question"]) == (batch.keys[owner], question)
            for name, found in (
                ("generated", VqaAdapter(model, tokenizer).answers(read, greedy)),
                ("ranked", VqaAdapter(model, tokenizer).rank(read, candidates)),
            ):
                assert record[name] == found[0][0].text
                expected[name].append(score_answer(found[0][0].text, right))
            expected["most"].append(max(score_answer(text, right) for text in candidates))
    assert metrics == pytest.approx({f"accuracy_{name}": sum(v) / len(v) for name, v in expected.items()})
    alone, _ = evaluate_answers(VqaAdapter(model, tokenizer), batches, greedy)
    assert alone == {"accuracy_generated": pytest.approx(metrics["accuracy_generated"])}


def test_a_measure_ranks_by_the_loss_of_training(tokenizer: TextTokenizer) -> None:
    """As the original, whose label smoothing makes each further token cost more than its likelihood does."""
    model, batch = small.vqa_model(), asked(UNEVEN)
    candidates = ["two", "a red bus", "cat", "yes", "two birds", "no"]
    adapter, shares = VqaAdapter(model, tokenizer), {}
    for smoothing in (0.0, 0.1):
        config = RunConfig(
            family="blip",
            task="answering",
            sources=as_sources(["unread"]),
            answering=AnsweringConfig(label_smoothing=smoothing),
            decode=DecodeConfig(max_new_tokens=3),
        )
        _, records = evaluate(config, adapter, lambda: [batch], candidates)
        shares[smoothing] = [record["probability"] for record in records]
        for record, owner in zip(records, batch.image_index.tolist(), strict=True):
            with torch.no_grad():
                memory = model.remember(model.encode_image(normalize(batch.images[owner][None])))
                read = adapter.read(memory, encode_questions(tokenizer, [str(record["question"])]))
                losses = torch.zeros(len(candidates))
                for row, text in enumerate(candidates):
                    ids = tokenizer.encode([text], first="dec").input_ids
                    logits = model.text_decoder(ids, memory=read)[0, :-1]
                    losses[row] = cross_entropy(logits, ids[0, 1:], label_smoothing=smoothing, reduction="sum")
            assert record["ranked"] == candidates[int(losses.argmin())]
            assert record["probability"] == pytest.approx(float(losses.neg().softmax(0).max()), rel=1e-4)
    assert shares[0.0] != pytest.approx(shares[0.1], rel=1e-2)
