"""A file of captions that another command began: what differs is named as the options are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openblip.cli.entry import main
from openblip.cli.resumed import begin_or_continue
from openblip.core.config import to_dict
from openblip.core.errors import UserError
from openblip.generation.config import DecodeConfig


def settings(prompt: str, **decode: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "decode": to_dict(DecodeConfig(**decode)), "versions": {"torch": "2.9"}}


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (settings("", num_beams=2), "beams: 3 then, 2 now"),
        (settings("a", num_beams=3, min_new_tokens=4), 'prompt: "" then, a now; min-new-tokens: 0 then, 4 now'),
        (settings("", sample=True), "beams: 3 then, 1 now; sampling: false then, true now"),
        (settings("", num_beams=3) | {"versions": {}}, "torch: 2.9 then, none now"),
    ],
)
def test_what_differs_is_named(now: dict[str, Any], told: str, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    begun = settings("", num_beams=3)
    assert begin_or_continue(out, "image", begun) == set()
    assert begin_or_continue(out, "image", begun) == set()
    with pytest.raises(UserError, match="was begun with other settings") as refused:
        begin_or_continue(out, "image", now)
    assert f"({told}), so it is not continued" in str(refused.value)


def test_a_file_that_can_be_continued_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").touch()
    out = tmp_path / "a.jsonl"
    out.write_text('{"image": "a.png"}\n')
    command = ["caption", str(tmp_path / "a.png"), "--model", "of/hub", "--out", str(out)]
    assert main(command) == 2
    assert capsys.readouterr().err == f"openblip: {out} exists already; choose a new file\n"
    (tmp_path / "a.jsonl.run.json").write_text("{}")
    assert main(command) == 2
    told = "exists already; continue it with --resume, or choose a new file"
    assert capsys.readouterr().err == f"openblip: {out} {told}\n"
    assert main([*command, "--write", "txt"]) == 2
    told = "is a file, and with --write txt the captions go into a folder; name one with --out"
    assert capsys.readouterr().err == f"openblip: {out} {told}\n"
    assert main([*command[:-1], str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"openblip: {tmp_path} exists already; choose a new file\n"
