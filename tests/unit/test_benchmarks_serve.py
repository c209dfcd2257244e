"""The benchmark of the service, at a small size: nothing is timed here, but every answer is looked at."""

from __future__ import annotations

import json

import httpx
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


def test_chats_are_compared_by_what_they_say() -> None:
    sent = {"content-type": "text/event-stream; charset=utf-8"}
    chunks = [
        {"id": "1", "choices": [{"delta": {"role": "assistant", "content": "a "}, "finish_reason": None}]},
        {"id": "1", "choices": [{"delta": {"content": "bus"}, "finish_reason": None}]},
        {"id": "1", "choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    events = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks)
    found = serve.told(httpx.Response(200, headers=sent, text=f"{events}data: [DONE]\n\n"))
    assert found == {"text": "a bus", "finish_reason": "stop", "last": "[DONE]"}
    cut = serve.told(httpx.Response(200, headers=sent, text=events))
    assert not serve.same(cut, found)
    assert serve.told(httpx.Response(200, json={"id": "1", "created": 2, "model": "m"})) == {"model": "m"}


def test_answers_are_compared_but_for_rounding() -> None:
    one = {"captions": [{"text": "a bus", "log_prob": -3.0, "complete": True}]}
    assert serve.same(one, {"captions": [{"text": "a bus", "log_prob": -3.0001, "complete": True}]})
    assert not serve.same(one, {"captions": [{"text": "a bus", "log_prob": -3.1, "complete": True}]})
    assert not serve.same(one, {"captions": [{"text": "a car", "log_prob": -3.0, "complete": True}]})
    assert not serve.same(one, {"captions": []})
    assert not serve.same(one, {"error": "x"})
