"""VQA's loss, generated and ranked answers, and NLVR's logits against the reference's values."""

from __future__ import annotations

import torch
from golden_files import GoldenBlip
from torch import Tensor
from torch.nn import functional

from openblip.core.tokenizer import TokenBatch
from openblip.generation.decode import DecodeConfig, decode
from openblip.generation.rank import rank_two_step
from openblip.models.layers import ImageMemory
from openblip.models.stepper import DecoderStepper
from openblip.objectives.answering import VqaObjective
from openblip.objectives.nlvr import NlvrObjective

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the reference's code sums float32 in another order"""
SMOOTHING = 0.1  # the reference ranks by its training loss


def questions_of(golden: GoldenBlip) -> TokenBatch:
    return golden.tokenizer.encode(golden.meta["questions"], first="enc", max_length=35)


def asked(golden: GoldenBlip, *, all_ones: bool = False, rows: slice = slice(None)) -> tuple[object, ImageMemory]:
    model, questions = golden.model("vqa"), questions_of(golden)
    ids, mask = questions.input_ids[rows], questions.attention_mask[rows]
    if rows != slice(None):
        ids, mask = ids[:, : mask.sum()], mask[:, : mask.sum()]
    with torch.no_grad():
        memory = model.remember(model.encode_image(golden.io["image"][rows]))
        states = model.read_question(ids, mask, memory)
        return model, model.remember_question(states, None if all_ones else mask)


def written(golden: GoldenBlip, model: object, memory: ImageMemory) -> Tensor:
    """Beam 3, 1 to 10 tokens with the first one counted, as the reference generates answers."""
    tokenizer = golden.tokenizer
    prompt = torch.full((memory.batch_size, 1), tokenizer.dec_id)
    decoded = decode(
        DecoderStepper(model.text_decoder, memory),  # type: ignore[attr-defined]
        prompt,
        None,
        DecodeConfig(num_beams=3, max_new_tokens=9),
        eos_ids=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
    )
    return decoded.with_prompts(prompt, pad_id=tokenizer.pad_id)


def test_weighted_loss(golden: GoldenBlip) -> None:
    meta, tokenizer = golden.meta, golden.tokenizer
    objective = VqaObjective(golden.model("vqa"), enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id)
    counts = torch.tensor(meta["vqa.n"])
    losses = objective(
        golden.io["image"],
        tokenizer.encode(meta["questions"], max_length=35),
        tokenizer.encode(meta["vqa.train_answers"]),
        torch.arange(len(counts)).repeat_interleave(counts),
        torch.tensor(meta["vqa.weights"]),
    )
    torch.testing.assert_close(losses["loss"], golden.io["vqa.loss"], **CLOSE)
    losses["loss"].backward()
    assert objective.model.vision.vit.cls_token.grad.abs().sum() > 0, "the question's image is trained too"


def test_generated_answers_with_the_mask_of_the_reference(golden: GoldenBlip) -> None:
    expected = golden.io["vqa.generate_ids"]
    ids = written(golden, *asked(golden, all_ones=True))
    assert torch.equal(ids, expected[:, : ids.shape[1]])
    assert (expected[:, ids.shape[1] :] == golden.tokenizer.pad_id).all()


def test_a_generated_answer_does_not_depend_on_its_batch(golden: GoldenBlip) -> None:
    """With padding masked, which is our default; the reference's all-ones mask fails this."""
    together = written(golden, *asked(golden))
    for row in range(len(golden.meta["questions"])):
        alone = written(golden, *asked(golden, rows=slice(row, row + 1)))[0]
        real = together[row][: len(alone)]
        assert torch.equal(alone, real), golden.meta["questions"][row]


def test_ranked_answers(golden: GoldenBlip) -> None:
    tokenizer, meta = golden.tokenizer, golden.meta
    model, memory = asked(golden)
    answers = tokenizer.encode(meta["vqa.answer_list"], first="dec")

    def read(ids: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        return model.text_decoder(ids, mask, memory=memory.select(rows))  # type: ignore[attr-defined]

    ranking = rank_two_step(
        read,
        answers.input_ids,
        answers.attention_mask,
        num_rows=memory.batch_size,
        keep=meta["vqa.k_test"],
        label_smoothing=SMOOTHING,
    )
    assert torch.equal(ranking.indices[:, 0], golden.io["vqa.rank_ids"])
    torch.testing.assert_close(ranking.probabilities.sum(1), torch.ones(memory.batch_size))


def test_nlvr_logits(golden: GoldenBlip) -> None:
    model, image = golden.model("nlvr"), golden.io["image"]
    text = golden.tokenizer.encode(golden.meta["nlvr.texts"], first="enc")
    half = len(image) // 2
    with torch.no_grad():
        memory = model.remember(model.encode_pair(image[:half], image[half:]))
        logits = model.classify(text.input_ids, text.attention_mask, memory)
        swapped = model.remember(model.encode_pair(image[half:], image[:half]))
        other = model.classify(text.input_ids, text.attention_mask, swapped)
    torch.testing.assert_close(logits, golden.io["nlvr.logits"], **CLOSE)
    assert not torch.allclose(other, logits, atol=1e-3), "the order of the images matters"
    labels = torch.arange(half) % 2
    objective = NlvrObjective(model, enc_id=golden.tokenizer.enc_id)
    loss = objective(torch.stack((image[:half], image[half:]), dim=1), text, labels)["loss"]
    torch.testing.assert_close(loss, functional.cross_entropy(golden.io["nlvr.logits"], labels), **CLOSE)
