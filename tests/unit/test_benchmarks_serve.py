"""The benchmark of the service, at a small size: nothing is timed here, but every answer is looked at."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

import httpx
import pytest

from benchmarks import serve


class Forked:
    """In place of `subprocess.Popen`: `openblip serve`, forked from one that has imported what takes seconds."""

    def __init__(
        self, context: ForkServerContext, command: list[str], *, stderr: int, text: bool, env: dict[str, str]
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "openblip"]
        told, tell = context.Pipe(duplex=False)
        self.process = context.Process(target=command_in, args=(command[3:], tell, env))
        self.process.start()
        tell.close()
        assert self.process.pid is not None
        self.pid, self.stderr = self.process.pid, os.fdopen(os.dup(told.fileno()))
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[None, str]:
        with self.stderr:
            rest = self.stderr.read()
        self.process.join(timeout)
        self.returncode = self.process.exitcode
        return None, rest


def command_in(arguments: list[str], tell: Connection, env: dict[str, str]) -> None:
    """The command, with a pipe as standard error."""
    from openblip.cli.entry import main

    os.environ.update(env)
    os.dup2(tell.fileno(), 2)
    tell.close()
    sys.exit(main(arguments))


@pytest.mark.slow
def test_no_answer_is_wrong_and_none_is_lost(monkeypatch: pytest.MonkeyPatch, forked: ForkServerContext) -> None:
    monkeypatch.setattr(serve.subprocess, "Popen", partial(Forked, forked))
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
