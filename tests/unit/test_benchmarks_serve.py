"""The benchmark of the service, at a small size: nothing is timed here, but every answer is looked at."""

from __future__ import annotations

import pytest

from benchmarks import serve


@pytest.mark.slow
def test_no_answer_is_wrong_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "QUICK_CLIENTS", 30)  # a bad client of each kind
    (row,) = serve.run(quick=True)["rows"]
    assert row["outputs_agree"]
    assert row["right"] > 10
    assert {"broken_and_refused", "hung_up", "slow_and_answered"} <= row.keys()
    assert "wrong" not in row
    assert "lost" not in row
    assert row["p50_s"] <= row["p99_s"]


def test_answers_are_compared_but_for_rounding() -> None:
    one = {"captions": [{"text": "a bus", "log_prob": -3.0, "complete": True}]}
    assert serve.same(one, {"captions": [{"text": "a bus", "log_prob": -3.0001, "complete": True}]})
    assert not serve.same(one, {"captions": [{"text": "a bus", "log_prob": -3.1, "complete": True}]})
    assert not serve.same(one, {"captions": [{"text": "a car", "log_prob": -3.0, "complete": True}]})
    assert not serve.same(one, {"captions": []})
    assert not serve.same(one, {"error": "x"})
