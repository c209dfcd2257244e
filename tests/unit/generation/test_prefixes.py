"""Texts that begin alike are read as trees: the likelihoods of reading each text whole, with fewer tokens."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.generation.prefixes import Prefixes
from openblip.generation.rank import log_likelihood, rank_all, rank_two_step
from openblip.models.configs import TextConfig
from openblip.models.layers import ImageMemory
from openblip.models.text import TextDecoder, TextTransformer

DEC, SEP, PAD, VOCAB = 1, 2, 0, 40
WORDS = [[5], [5, 6], [5, 6, 7], [5, 6, 8], [9], [9, 6], [10, 11, 12, 13], [5, 9], [10], []]


class Decoder:
    """A small decoder over the memories of three questions; notes how many tokens it reads."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = TextConfig(
            vocab_size=VOCAB, width=16, depth=2, num_heads=2, inner_width=32, max_positions=8, memory_width=12
        )
        self.decoder = TextDecoder(TextTransformer(config, causal=True)).eval()
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        states = torch.randn(3, 4, 12)
        self.memory: ImageMemory = self.decoder.transformer.remember(states)
        self.tokens = 0

    def read(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> Tensor:
        self.tokens += input_ids.numel()
        return self.decoder(input_ids, attention_mask, memory=self.memory.select(rows))

    def read_tree(self, input_ids: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        self.tokens += input_ids.numel()
        return self.decoder(input_ids, memory=self.memory.select(rows), tree=(positions, mask))


def test_chunks_are_sized_by_their_own_texts() -> None:
    """Chunks of trees are as large as their own tokens let them be, not as the longest text of all would."""
    decoder, sizes = Decoder(), []
    ids = torch.tensor([[DEC, 5 + number, SEP, *[PAD] * 600] for number in range(30)])
    mask = (torch.arange(603) < 3).expand(30, -1)

    def read_tree(input_ids: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return decoder.read_tree(input_ids, positions, mask, rows)

    wide, short = ((ids[:, :width].expand(3, -1, -1), mask[:, :width].expand(3, -1, -1)) for width in (603, 3))
    found = log_likelihood(decoder.read, *wide, read_tree=read_tree)
    assert sizes == [3]
    close(found, log_likelihood(decoder.read, *short))


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # sums in another order


def padded(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    whole = [[DEC, *text, SEP] for text in texts]
    width = max(map(len, whole)) + 1
    ids = torch.tensor([text + [PAD] * (width - len(text)) for text in whole])
    return ids, torch.arange(width) < torch.tensor([[len(text)] for text in whole])


def lists() -> tuple[Tensor, Tensor]:
    """Ten answers in another order for each of three questions, one of the third left out by its mask."""
    ids, mask = padded(WORDS)
    order = torch.stack([torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(n)) for n in range(3)])
    ids, mask = ids[order], mask[order].clone()
    mask[2, 4] = False
    return ids, mask


def test_a_tree_by_hand() -> None:
    ids, mask = padded([[5, 6], [5], [7]])
    tree = Prefixes.of(ids[None], mask[None])
    assert tree.input_ids.tolist() == [[DEC, 5, 7, 6]]
    assert tree.positions.tolist() == [[0, 1, 1, 2]]
    assert tree.mask[0].tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [True, False, True, False],
        [True, True, False, True],
    ]
    assert tree.places[0].tolist() == [[0, 1, 3, 0], [0, 1, 0, 0], [0, 2, 0, 0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("max_rows", [1, 4, 10, 25, 256])
def test_likelihoods_are_those_of_whole_texts(max_rows: int, start: int, smoothing: float) -> None:
    decoder, (ids, mask) = Decoder(), lists()
    how: Any = {"num_prompt_tokens": start, "label_smoothing": smoothing}
    wanted = log_likelihood(decoder.read, ids, mask, **how)
    found = log_likelihood(decoder.read, ids, mask, **how, max_rows=max_rows, read_tree=decoder.read_tree)
    close(found, wanted)
    assert wanted.unique().numel() > 20, "every text has a number of its own"


@pytest.mark.parametrize("keep", [1, 3, 10])
def test_ranks_are_the_same(keep: int) -> None:
    decoder, (ids, mask) = Decoder(), padded(WORDS)
    plain = rank_two_step(decoder.read, ids, mask, num_rows=3, keep=keep)
    tree = rank_two_step(decoder.read, ids, mask, num_rows=3, keep=keep, read_tree=decoder.read_tree)
    assert torch.equal(tree.indices, plain.indices)
    close(tree.log_probs, plain.log_probs)
    every = rank_all(decoder.read, ids, mask, num_rows=3, read_tree=decoder.read_tree)
    assert torch.equal(every.indices, rank_all(decoder.read, ids, mask, num_rows=3).indices)


def test_fewer_tokens_are_read() -> None:
    """Also where there are more texts than are read at once: neighbours share their beginnings."""
    decoder, (ids, mask) = Decoder(), padded(WORDS)
    counts = []
    for tree in (None, decoder.read_tree):
        decoder.tokens = 0
        rank_two_step(decoder.read, ids, mask, num_rows=3, keep=10, read_tree=tree)
        counts.append(decoder.tokens)
    plain, shared = counts
    # Ten texts, padded to 6 tokens, for each of three; as trees [DEC] and 11 beginnings. Before them [DEC] alone.
    assert (plain, shared) == (3 * (10 * 6 + 1), 3 * (12 + 1))
    many = [list(words) for words in product(range(5, 15), repeat=3)]
    ids, mask = padded(many)
    decoder.tokens = 0
    found = log_likelihood(decoder.read, ids[None], mask[None], read_tree=decoder.read_tree)
    assert decoder.tokens < 0.35 * sum(len(text) + 2 for text in many)
    close(found, log_likelihood(decoder.read, ids[None], mask[None]))


def test_texts_that_share_nothing_are_no_more_work() -> None:
    decoder, (ids, mask) = Decoder(), padded([[5, 6], [7, 8], [9, 10]])
    counts = []
    for tree in (None, decoder.read_tree):
        decoder.tokens = 0
        log_likelihood(decoder.read, ids[None], mask[None], read_tree=tree)
        counts.append(decoder.tokens)
    assert counts == [3 * 4, 1 + 3 * 2]


def test_empty_lists_and_texts() -> None:
    decoder, (ids, mask) = Decoder(), padded(WORDS)
    nothing = log_likelihood(decoder.read, ids[None, :0], mask[None, :0], read_tree=decoder.read_tree)
    assert nothing.shape == (1, 0)
    blank = log_likelihood(decoder.read, ids[None], torch.zeros_like(mask)[None], read_tree=decoder.read_tree)
    assert torch.equal(blank, torch.zeros(1, len(WORDS)))
