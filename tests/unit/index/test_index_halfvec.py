"""Vectors in PostgreSQL: exact for few, near to exact by HNSW for many, and what a kill leaves behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from index_small import new_address
from torch import Tensor
from torch.nn.functional import normalize

from openblip.core.errors import UserError
from openblip.index import Filters
from openblip.index.address import parse_address
from openblip.index.catalog import Catalog, Record
from openblip.index.halfvec import HalfvecStore
from openblip.index.postgres import PostgresDatabase
from openblip.index.vectors import Comparison, Term

WIDTH = 32


def drawn(count: int, queries: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, queries, WIDTH, generator=generator), dim=-1)


@pytest.fixture(params=[1, 4], ids=["blip", "blip2"])
def queries(request: pytest.FixtureRequest) -> int:
    return request.param


Filled = Callable[..., HalfvecStore]


@pytest.fixture
def filled(postgres: str, queries: int) -> Filled:
    """Makes an index with a row for each vector; those with an even number lie in /even."""

    def make(held: Tensor, exact_rows: int = 10**9) -> HalfvecStore:
        database = PostgresDatabase(parse_address(new_address(postgres)), create=True)
        catalog = Catalog(database, {"shape": [queries, WIDTH]})
        place = catalog.place("made up")
        store = HalfvecStore(database, catalog, exact_rows=exact_rows)
        with database.transaction():
            store.append(held, 0)
            for number in range(len(held)):
                catalog.put(_record(number, place))
        return store

    return make


def _record(number: int, place: int) -> Record:
    folder = "odd" if number % 2 else "even"
    name = f"/{folder}/{number:06d}.jpg"
    return Record(name, place, name, None, None, size=9, modified=1, hash=f"{number:x}", vector=number, date="2024")


def terms_of(queries: int) -> list[list[Term]]:
    """A text, several, an image, and all of them."""
    first, second = drawn(2, 1, seed=1)[:, 0]
    image = Term(drawn(1, queries, seed=2)[0], 2.0)
    several = [Term(first), Term(second, -0.5)]
    return [[Term(first)], several, [image], [*several, image]]


def expected(held: Tensor, terms: list[Term], allowed: Tensor) -> Tensor:
    return Comparison(terms)(held.to(torch.float16).float()).masked_fill(~allowed, -99)


def test_search_of_few_is_exact(filled: Filled, queries: int) -> None:
    held = drawn(300, queries)
    store = filled(held)
    store.settle()
    assert not store.has_hnsw
    even = torch.arange(300) % 2 == 0
    for terms in terms_of(queries):
        for filters, allowed in ((None, even | True), (Filters(folder="/even"), even)):
            scores, numbers = store.search(terms, 7, filters)
            best = expected(held, terms, allowed).topk(7)
            assert numbers.tolist() == best.indices.tolist()
            # Sums of 32 products of numbers below 1 in another order.
            torch.testing.assert_close(scores, best.values, atol=1e-5, rtol=0)
    torch.testing.assert_close(store.read([5, 0, 5]), held[[5, 0, 5]].to(torch.float16).float(), atol=0, rtol=0)
    assert len(store.search(terms_of(queries)[0], 7, Filters(folder="/none"))[1]) == 0


def test_search_of_many_by_hnsw_finds_nearly_all(filled: Filled, queries: int) -> None:
    held = drawn(2400 // queries, queries)
    store = filled(held, exact_rows=500)
    store.settle()
    assert store.has_hnsw
    even = torch.arange(len(held)) % 2 == 0
    found = wanted = 0
    for seed in range(8):
        for terms in terms_of(queries) if seed == 0 else [[Term(drawn(1, 1, seed=seed)[0, 0])]]:
            for filters, allowed in ((None, even | True), (Filters(folder="/even"), even)):
                scores, numbers = store.search(terms, 10, filters)
                assert bool(allowed[numbers].all()), "filters hold"
                assert scores.tolist() == sorted(scores.tolist(), reverse=True)
                torch.testing.assert_close(scores, expected(held, terms, allowed)[numbers], atol=1e-5, rtol=0)
                best = expected(held, terms, allowed).topk(10).indices
                found, wanted = found + len(set(numbers.tolist()) & set(best.tolist())), wanted + 10
    assert found / wanted >= 0.97


def test_hnsw_is_what_gives_the_candidates_of_many(filled: Filled, queries: int) -> None:
    store = filled(drawn(1200 // queries, queries), exact_rows=500)
    store.settle()
    asked: list[str] = []
    rows = store._database.rows

    def spy(statement: str, values: object = ()) -> list[tuple[object, ...]]:
        if "ORDER BY value <#>" in statement:
            asked.extend(line for (line,) in rows(f"EXPLAIN {statement}", values))  # type: ignore[arg-type]
        return rows(statement, values)  # type: ignore[arg-type]

    store._database.rows = spy  # type: ignore[method-assign]
    text = terms_of(queries)[0]
    for filters in (None, Filters(folder="/even"), Filters(since="2023")):
        asked.clear()
        assert len(store.search(text, 5, filters)[1]) == 5
        assert "Index Scan using vectors_hnsw" in "\n".join(asked)
    asked.clear()
    store.exact_rows = 600
    assert len(store.search(text, 5, Filters(folder="/even"))[1]) == 5
    assert not asked, "what is left by the filter is compared exactly"


def test_an_index_grows_after_its_hnsw(filled: Filled, queries: int) -> None:
    held = drawn(1200 // queries, queries)
    store = filled(held, exact_rows=500)
    store.settle()
    new = drawn(1, queries, seed=9)
    store.append(new, len(held))
    catalog = store._catalog
    catalog.put(_record(len(held), catalog.place("made up")))
    _, numbers = store.search([Term(new[0])], 1)
    assert numbers.tolist() == [len(held)]
    catalog.remove([catalog.find(_record(len(held), 1).path).id], "2024")  # type: ignore[union-attr]
    assert len(held) not in store.search([Term(new[0])], 20)[1].tolist()


def test_what_a_killed_writer_left_is_written_over(filled: Filled, queries: int) -> None:
    held = drawn(9, queries)
    store = filled(held[:5])
    store.append(drawn(4, queries, seed=5), 5)  # of these no row came to be committed
    assert 5 not in store.search(terms_of(queries)[0], 9)[1].tolist()
    store.append(held[5:], 5)
    torch.testing.assert_close(store.read(range(9)), held.to(torch.float16).float(), atol=0, rtol=0)
    store._database.run("DELETE FROM vectors WHERE number = 3")
    with pytest.raises(UserError, match=rf"lacks {queries} vectors; remove the index and build it again"):
        store.read([2, 3])
