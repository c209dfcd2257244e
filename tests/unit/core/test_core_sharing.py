"""Work in turns, in one process; several are in tests/jobs/test_shared_work.py and tests/distributed."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from openblip.core.errors import UserError
from openblip.core.sharing import in_turns, together


@pytest.mark.parametrize(("count", "pieces"), [(0, []), (4, [2, 2]), (5, [2, 2, 1])])
def test_pieces_are_worked_on_and_taken_one_after_another(count: int, pieces: list[int]) -> None:
    seen: list[str] = []

    def work(own: list[int]) -> Generator[list[int], None, None]:
        for start in range(0, len(own), 2):
            seen.append("work")
            yield own[start : start + 2]
        seen.append("end")

    taken: list[list[int]] = []

    def take(found: list[int]) -> None:
        seen.append("take")
        taken.append(found)

    in_turns(range(count), 2, work, take)
    assert [len(found) for found in taken] == pieces
    assert [one for found in taken for one in found] == list(range(count))
    assert seen[: 2 * len(pieces)] == ["work", "take"] * len(pieces), "a result waits for the next"


def test_work_is_closed_after_a_mistake() -> None:
    closed = []

    def work(own: list[int]) -> Generator[int, None, None]:
        try:
            yield from own
        finally:
            closed.append(True)

    def take(found: int) -> None:
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        in_turns([1, 2], 1, work, take)
    assert closed


def test_together_in_one_process() -> None:
    assert together(lambda: 3) == [3]
    with pytest.raises(UserError, match="no such thing"):
        together(lambda: (_ for _ in ()).throw(UserError("no such thing")))
