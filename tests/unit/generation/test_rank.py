"""Log-likelihood and ranking against a token-by-token loop on the table language model."""

from __future__ import annotations

import pytest
import torch
from steppers import TableStepper, assert_log_prob, table_logits
from torch import Tensor

from openblip.core.errors import UserError
from openblip.generation.decode import DecodeConfig, decode
from openblip.generation.rank import log_likelihood, rank_all, rank_two_step, token_log_probs

VOCAB, START, END, PAD = 20, 2, 1, 0
IMAGES = [4, 9, 30]
ANSWERS = [[5, END], [6, 7, END], [6, 8, 9, END], [10, END], [6, 7, 7, 7, 7, END], [11, 12, END], [5, 3, END]]


class Reader:
    """Reads whole texts; notes the shape of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
        self.calls.append(tuple(input_ids.shape))  # type: ignore[arg-type]
        per_prompt, rest = divmod(len(input_ids), len(rows))
        assert rest == 0
        assert (rows.diff() > 0).all()
        images = torch.tensor(IMAGES)[rows].repeat_interleave(per_prompt)
        length = input_ids.shape[1]
        before = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], dim=1)
        logits = table_logits(
            images.repeat_interleave(length), before.reshape(-1), input_ids.reshape(-1), VOCAB, 6.0
        )
        logits = logits.view(len(input_ids), length, VOCAB)
        return logits.masked_fill(~attention_mask[:, :, None], float("nan"))  # padding must not be used


def answers() -> tuple[Tensor, Tensor]:
    texts = [[START, *answer] for answer in ANSWERS]
    width = max(map(len, texts)) + 2  # two columns of padding alone
    ids = torch.tensor([text + [PAD] * (width - len(text)) for text in texts])
    return ids, torch.arange(width) < torch.tensor([[len(text)] for text in texts])


def expected() -> Tensor:
    """Summed one token after the other, in Python."""
    result = torch.zeros(len(IMAGES), len(ANSWERS))
    for row, image in enumerate(IMAGES):
        for column, answer in enumerate(ANSWERS):
            text = [0, START]
            for token in answer:
                logits = table_logits(
                    torch.tensor([image]), torch.tensor([text[-2]]), torch.tensor([text[-1]]), VOCAB, 6.0
                )
                result[row, column] += torch.log_softmax(logits[0], dim=-1)[token]
                text.append(token)
    return result


@pytest.mark.parametrize("max_rows", [1, 2, 5, 7, 15, 1000])
def test_log_likelihood_equals_the_loop_however_it_is_cut(max_rows: int) -> None:
    ids, mask = answers()
    read = Reader()
    values = log_likelihood(
        read, ids.expand(len(IMAGES), -1, -1), mask.expand(len(IMAGES), -1, -1), max_rows=max_rows
    )
    torch.testing.assert_close(values, expected())
    assert all(rows <= max_rows for rows, _ in read.calls)
    assert max(width for _, width in read.calls) == 7, "columns of padding alone are not computed"
    if max_rows == 2:
        assert min(width for _, width in read.calls) < 5, "texts of like length are read together"


def test_long_texts_are_read_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens at once; one long text does not make chunks of the short ones smaller."""
    monkeypatch.setattr("openblip.generation.rank._MOST_TOKENS", 60)
    texts = [[START, *[6] * (40 if row == 3 else 2), END] for row in range(31)]
    ids = torch.tensor([text + [PAD] * (42 - len(text)) for text in texts])
    mask = torch.arange(42) < torch.tensor([[len(text)] for text in texts])
    read = Reader()
    values = log_likelihood(read, ids[None], mask[None])
    assert read.calls == [(1, 42), (15, 4), (15, 4)]
    alone = [log_likelihood(Reader(), ids[None, [row]], mask[None, [row]]) for row in (0, 3)]
    torch.testing.assert_close(values[:, [0, 3]], torch.cat(alone, dim=1))


def test_rank_all_puts_the_likeliest_first() -> None:
    ids, mask = answers()
    ranking = rank_all(Reader(), ids, mask, num_rows=3, max_rows=4)
    values, order = expected().sort(dim=1, descending=True)
    assert torch.equal(ranking.indices, order)
    torch.testing.assert_close(ranking.log_probs, values)
    torch.testing.assert_close(ranking.probabilities, torch.softmax(values, dim=1))


def test_two_steps_keep_the_likeliest_first_tokens() -> None:
    """With k = 3, the three answers that begin most likely (of equal ones the earlier) are ranked."""
    ids, mask = answers()
    for max_rows in (1, 2, 100):
        ranking = rank_two_step(Reader(), ids, mask, num_rows=3, keep=3, max_rows=max_rows)
        for row, image in enumerate(IMAGES):
            logits = table_logits(torch.tensor([image]), torch.tensor([0]), torch.tensor([START]), VOCAB, 6.0)[0]
            begins = sorted(range(len(ANSWERS)), key=lambda answer: -float(logits[ANSWERS[answer][0]]))
            by_likelihood = sorted(begins[:3], key=lambda answer: -float(expected()[row, answer]))
            assert ranking.indices[row].tolist() == by_likelihood
    everything = rank_two_step(Reader(), ids, mask, num_rows=3, keep=50)
    assert torch.equal(everything.indices, rank_all(Reader(), ids, mask, num_rows=3).indices)


def test_prompt_tokens_are_read_but_not_scored() -> None:
    ids, mask = answers()
    whole = log_likelihood(Reader(), ids[None, 1:3], mask[None, 1:3])
    rest = log_likelihood(Reader(), ids[None, 1:3], mask[None, 1:3], num_prompt_tokens=2)
    first = log_likelihood(Reader(), ids[None, 1:3, :2], mask[None, 1:3, :2])
    torch.testing.assert_close(whole, first + rest)
    two = rank_two_step(Reader(), ids[[1, 2, 4]], mask[[1, 2, 4]], num_rows=1, keep=3, num_prompt_tokens=2)
    assert sorted(two.indices[0].tolist()) == [0, 1, 2]


def test_label_smoothing_is_that_of_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(4, 6, 11), torch.randint(11, (4, 6))
    for smoothing in (0.0, 0.1):
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(token_log_probs(logits, ids, label_smoothing=smoothing), -loss)


def test_decoding_reports_the_likelihood_that_ranking_finds() -> None:
    prompts = torch.tensor([[START]] * 3)
    config = DecodeConfig(num_beams=3, num_sequences=3, max_new_tokens=8)
    decoded = decode(TableStepper(IMAGES, VOCAB), prompts, None, config, eos_ids=END, pad_id=PAD)
    texts = decoded.with_prompts(prompts, pad_id=PAD)
    mask = torch.arange(texts.shape[1]) <= decoded.lengths[:, None]
    values = log_likelihood(Reader(), texts.view(3, 3, -1), mask.view(3, 3, -1))
    torch.testing.assert_close(values.view(-1), decoded.log_probs)
    ids = decoded.ids[0, : decoded.lengths[0]].tolist()
    assert_log_prob(TableStepper(IMAGES, VOCAB), 0, [START], ids, float(values[0, 0]))


def test_nothing_to_rank_and_bad_numbers() -> None:
    ids, mask = answers()
    assert rank_two_step(Reader(), ids, mask, num_rows=0, keep=3).indices.shape == (0, 3)
    assert log_likelihood(Reader(), ids[None, :0], mask[None, :0]).shape == (1, 0)
    with pytest.raises(UserError, match="keep"):
        rank_two_step(Reader(), ids, mask, num_rows=1, keep=0)
    with pytest.raises(UserError, match="max_rows"):
        rank_all(Reader(), ids, mask, num_rows=1, max_rows=0)
