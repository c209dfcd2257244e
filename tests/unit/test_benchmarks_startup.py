"""The benchmark of starting up: what it takes off, and that it says when a mistake is answered too late."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import startup

Commands = dict[str, list[str]]


def test_times_are_medians_in_turn_and_the_first_round_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(startup.time, "perf_counter", lambda: next(ticks))
    commands = {"one": [sys.executable, "-c", "print('said')"], "two": [sys.executable, "-c", "print(2)"]}
    times, printed = startup._in_turn(commands, 2)
    assert times == {"one": 1, "two": 1}
    assert printed == {"one": "said\n", "two": "2\n"}


def test_a_command_that_fails_is_an_error_unless_it_should() -> None:
    failing = {"it": [sys.executable, "-c", "raise SystemExit('no')"]}
    with pytest.raises(RuntimeError, match=r"it failed:\nno"):
        startup._in_turn(failing, 1)
    assert startup._in_turn(failing, 1, fails=True)[1] == {"it": "no\n"}


def test_the_bare_imports_are_taken_off_and_captions_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"ours": 5.0, "peer": 9.0, "ours imports": 4.0, "peer imports": 3.0}
    said = {"ours": '{"captions": [{"text": "a cat"}]}', "peer": "a cat\n", "ours imports": "", "peer imports": ""}
    monkeypatch.setattr(startup, "_in_turn", lambda commands, repeats: (times, said))
    row = startup._first_caption(Path("model"), Path("image.png"), 3)
    assert (row["ours_s"], row["peer_s"], row["ratio"], row["outputs_agree"]) == (1.0, 6.0, 6.0, True)
    said["peer"] = "a dog\n"
    assert not startup._first_caption(Path("model"), Path("image.png"), 3)["outputs_agree"]


def test_a_mistake_answered_late_misses_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(
        commands: dict[str, list[str]], repeats: int, *, fails: bool
    ) -> tuple[dict[str, float], dict[str, str]]:
        return {name: 5.0 if name == "no such model" else 0.5 for name in commands}, dict.fromkeys(
            commands, "openblip: no"
        )

    monkeypatch.setattr(startup, "_in_turn", timed)
    rows = {row["case"]: row for row in startup._mistakes(Path("model"), Path("image.png"), 3)}
    assert not rows.pop("no such model")["goal_met"]
    assert len(rows) >= 3
    assert all(row["goal_met"] for row in rows.values())
