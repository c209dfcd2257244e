"""Vectors on disk: exact search over segments and blocks, and what a kill leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from openblip.core.errors import UserError
from openblip.index import segments
from openblip.index.segments import Segments
from openblip.index.vectors import Term


def drawn(count: int, queries: int, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, queries, width, generator=generator), dim=-1)


@pytest.fixture(params=[1, 5], ids=["blip", "blip2"])
def queries(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def store(tmp_path: Path, queries: int, monkeypatch: pytest.MonkeyPatch) -> Segments:
    """Seven vectors a segment, three a block."""
    row = 2 * queries * 16
    monkeypatch.setattr(segments, "_BLOCK_BYTES", 3 * 2 * row)
    return Segments(tmp_path / "vectors", (queries, 16), segment_bytes=7 * row)


def test_search_is_exact(store: Segments, queries: int) -> None:
    held = drawn(40, queries)
    for first in range(0, 40, 8):
        store.append(held[first : first + 8], first)
    rounded = held.to(torch.float16).float()
    texts, image = drawn(2, 1, seed=1)[:, 0], drawn(1, queries, seed=2)[0]
    terms = [Term(texts[0]), Term(texts[1], -0.5), Term(image, 2.0)]
    expected = (
        (rounded @ texts[0]).amax(1) - 0.5 * (rounded @ texts[1]).amax(1) + 2 * (rounded * image).sum(-1).mean(1)
    )
    allowed = np.random.default_rng(0).random(40) < 0.4
    for mask in (None, allowed):
        masked = expected if mask is None else expected.masked_fill(torch.from_numpy(~mask), -9)
        scores, numbers = store.search(terms, 6, 40, mask)
        best = masked.topk(6)
        assert numbers.tolist() == best.indices.tolist()
        # Sums of 16 products of numbers below 1 in another order.
        torch.testing.assert_close(scores, best.values, atol=1e-5, rtol=0)
    assert len(list(store.folder.iterdir())) == 6
    torch.testing.assert_close(store.read([0, 39, 7]), rounded[[0, 39, 7]], atol=0, rtol=0)


def test_fewer_vectors_than_are_wanted(store: Segments, queries: int) -> None:
    store.append(drawn(3, queries), 0)
    term = [Term(drawn(1, 1)[0, 0])]
    assert len(store.search(term, 10, 3)[1]) == 3
    assert len(store.search(term, 10, 0)[1]) == 0
    assert len(store.search(term, 10, 3, np.zeros(3, bool))[1]) == 0


def test_equal_vectors_come_in_order(store: Segments, queries: int) -> None:
    store.append(drawn(1, queries).expand(20, -1, -1), 0)
    assert store.search([Term(drawn(1, 1)[0, 0])], 9, 20)[1].tolist() == list(range(9))


def test_what_a_killed_writer_left_is_written_over(store: Segments, queries: int) -> None:
    held = drawn(9, queries)
    store.append(held[:5], 0)
    store.append(drawn(4, queries, seed=5), 5)  # of these no row came to be committed
    with open(store.folder / "000001.float16", "ab") as file:
        file.write(b"half a vec")
    later = Segments(store.folder, store.shape, segment_bytes=7 * 2 * queries * 16)
    later.append(held[5:], 5)
    torch.testing.assert_close(later.read(range(9)), held.to(torch.float16).float(), atol=0, rtol=0)


def test_a_file_that_was_cut_is_refused(store: Segments, queries: int) -> None:
    store.append(drawn(5, queries), 0)
    with open(store.folder / "000000.float16", "r+b") as file:
        file.truncate(3 * 2 * queries * 16)
    later = Segments(store.folder, store.shape, segment_bytes=7 * 2 * queries * 16)
    with pytest.raises(UserError, match=r"000000\.float16 holds 3 vectors, not 5; remove the index and build it"):
        later.search([Term(drawn(1, 1)[0, 0])], 3, 5)
