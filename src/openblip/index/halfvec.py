"""Vectors of images in PostgreSQL: pgvector's halfvec, compared with all or found by an HNSW index.

SQL gives candidates by vectors of float16, filters included; the best are then chosen by the same comparison as
everywhere else. A table has a row for each of the Q vectors [E] of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.index.catalog import Catalog
from openblip.index.filters import Filters
from openblip.index.postgres import PostgresDatabase
from openblip.index.vectors import Comparison, Term

__all__ = ["EXACT_ROWS", "HalfvecStore"]

EXACT_ROWS = 100_000
"""vectors [E] that are all compared with a query; of more, an HNSW index gives the candidates"""
_HNSW = "vectors_hnsw"
_MORE = 32
"""candidates beyond those that are wanted, for what the rounding of the query moves"""
_FOR_TERMS = 4
"""times more candidates of each term where there are several: the best of a sum need not be the best of each"""
_WIDEST = 1000
"""pgvector's largest hnsw.ef_search"""
_BUILD_MB = (64, 2048)
"""memory to build an index in, at least and at most"""


class HalfvecStore:
    """A `VectorStore` in the table `vectors` of an index.

    Args:
        exact_rows: as `EXACT_ROWS`.
    """

    def __init__(self, database: PostgresDatabase, catalog: Catalog, *, exact_rows: int = EXACT_ROWS) -> None:
        self.shape: tuple[int, int] = tuple(catalog.settings["shape"])
        self.exact_rows = exact_rows
        self._database, self._catalog = database, catalog

    def append(self, vectors: Tensor, first: int) -> None:
        """As `VectorStore.append`."""
        from pgvector import HalfVector

        values = vectors.to(torch.float16).cpu().numpy()

        def rows() -> Iterator[tuple[Any, ...]]:
            for number, image in enumerate(values, first):
                yield from ((number, query, HalfVector(one)) for query, one in enumerate(image))

        with self._database.transaction():
            # What a killed writer left behind the vectors that count is written over.
            self._database.run("DELETE FROM vectors WHERE number >= ?", (first,))
            self._database.copy("vectors (number, query, value)", ("int8", "int2", "halfvec"), rows())

    @property
    def has_hnsw(self) -> bool:
        """Whether there is an HNSW index."""
        return self._database.rows("SELECT to_regclass(?) IS NOT NULL", (_HNSW,)) == [(True,)]

    def settle(self) -> None:
        """As `VectorStore.settle`: makes the HNSW index, which PostgreSQL then keeps up to date."""
        rows = self._catalog.num_vectors * self.shape[0]
        if rows <= self.exact_rows or self.has_hnsw:
            return
        needed = math.ceil(2.5 * rows * 2 * self.shape[1] / 2**20)  # vectors and their neighbours
        with self._database.transaction():
            memory = f"{min(max(needed, _BUILD_MB[0]), _BUILD_MB[1])}MB"
            self._database.rows("SELECT set_config('maintenance_work_mem', ?, true)", (memory,))
            self._database.run(f"CREATE INDEX {_HNSW} ON vectors USING hnsw (value halfvec_ip_ops)")
        self._database.run("ANALYZE vectors")

    def read(self, numbers: Sequence[int]) -> Tensor:
        """As `VectorStore.read`."""
        wanted = [int(number) for number in numbers]
        found: dict[int, np.ndarray] = {}
        query = "SELECT number, query, value FROM vectors WHERE number = ANY(?::bigint[])"
        counted = 0
        for number, place, value in self._database.rows(query, (sorted(set(wanted)),)):
            found.setdefault(number, np.empty(self.shape, np.float16))[place] = value.to_numpy()
            counted += 1
        if counted < len(set(wanted)) * self.shape[0]:
            missing = len(set(wanted)) * self.shape[0] - counted
            raise UserError(f"{self._database.name} lacks {missing} vectors; remove the index and build it again")
        if not wanted:
            return torch.empty(0, *self.shape)
        return torch.from_numpy(np.stack([found[number] for number in wanted])).float()

    def search(self, terms: Sequence[Term], top: int, filters: Filters | None = None) -> tuple[Tensor, Tensor]:
        """As `VectorStore.search`; beyond `exact_rows` HNSW gives the candidates, and may miss a few."""
        where, values = (filters or Filters()).where(self._database)
        enough = self.exact_rows // self.shape[0] + 1
        few = f"SELECT count(*) FROM (SELECT 1 FROM images WHERE {where} LIMIT ?) AS passing"
        if self._database.rows(few, [*values, enough])[0][0] < enough or not self.has_hnsw:
            numbers = self._exact(terms, top + _MORE, where, values)
        else:
            numbers = self._nearest(terms, top + _MORE, where, values)
        scores = Comparison(terms)(self.read(numbers))
        found = torch.tensor(numbers, dtype=torch.int64)
        # Equal scores in the order of their numbers, so that a search gives the same each time.
        order = found.argsort()
        order = order[scores[order].argsort(descending=True, stable=True)][:top]
        return scores[order], found[order]

    def _exact(self, terms: Sequence[Term], count: int, where: str, values: Sequence[Any]) -> list[int]:
        """Numbers of the best by comparing all vectors that pass."""
        parts, given = [], list[Any]()
        for term in terms:
            own = _halfvecs(term.vector)
            if term.vector.ndim == 1:
                parts.append("? * max(-(value <#> ?::halfvec))")
                given += [term.weight, own[0]]
            else:
                parts.append("? * avg(-(value <#> (?::halfvec[])[query + 1]))")
                given += [term.weight, own]
        query = (
            f"SELECT number FROM vectors WHERE {_passes(where)} GROUP BY number "
            f"ORDER BY {' + '.join(parts)} DESC, number LIMIT ?"
        )
        return [number for (number,) in self._database.rows(query, [*values, *given, count])]

    def _nearest(self, terms: Sequence[Term], count: int, where: str, values: Sequence[Any]) -> list[int]:
        """Numbers of candidates near each of the terms that are wanted, by the HNSW index."""
        wanted = [term for term in terms if term.weight > 0]
        if len(terms) > 1:
            count *= _FOR_TERMS
        found: dict[int, None] = {}
        with self._database.transaction():
            # Sorting would compare all vectors; the index gives rows in their order, until enough of them pass.
            for name, value in (("enable_sort", "off"), ("hnsw.iterative_scan", "relaxed_order")):
                self._database.rows("SELECT set_config(?, ?, true)", (name, value))
            for term in wanted:
                several = term.vector.ndim == 1 and self.shape[0] > 1
                for vector in _halfvecs(term.vector):
                    found |= dict.fromkeys(self._near(vector, count, several, where, values))
        return list(found)

    def _near(self, vector: Any, count: int, several: bool, where: str, values: Sequence[Any]) -> list[int]:
        """Numbers of the images with the vectors nearest to one.

        Args:
            several: the rows near a text may be of few images: go on until there are `count` images.
        """
        query = f"SELECT number FROM vectors WHERE {_passes(where)} ORDER BY value <#> ?::halfvec LIMIT ?"
        limit = count
        while True:
            width = str(min(_WIDEST, max(2 * limit, 100)))
            self._database.rows("SELECT set_config('hnsw.ef_search', ?, true)", (width,))
            rows = self._database.rows(query, [*values, vector, limit])
            numbers = list(dict.fromkeys(number for (number,) in rows))
            if not several or len(numbers) >= count or len(rows) < limit or limit >= count * self.shape[0]:
                return numbers
            limit = min(4 * limit, count * self.shape[0])


def _passes(where: str) -> str:
    return f"EXISTS (SELECT 1 FROM images WHERE images.vector = vectors.number AND {where})"


def _halfvecs(vectors: Tensor) -> list[Any]:
    """[E] or [Q, E] as pgvector takes them."""
    from pgvector import HalfVector

    rows = vectors.reshape(-1, vectors.shape[-1]).float().cpu().numpy()
    return [HalfVector(row) for row in rows]
