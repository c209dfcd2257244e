"""What tyro refuses is said in one sentence, whatever it prints itself."""

from __future__ import annotations

import pytest

from openblip.cli.entry import main

CAPTION = ("caption", "a.jpg", "--model", "m")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*CAPTION, "--beams", "x"), '--beams must be a whole number, not "x"'),
        ((*CAPTION, "--beams=2.5"), '--beams must be a whole number, not "2.5"'),
        ((*CAPTION, "--nucleus", "x"), '--nucleus must be a number, not "x"'),
        ((*CAPTION, "--dtype", "flot32"), '--dtype cannot be "flot32" (did you mean "float32"?)'),
        ((*CAPTION, "--beams"), "--beams needs a value"),
        (("caption", "a.jpg", "--model", "--beams", "3"), "--model needs a value"),
        (("match", "--model", "m", "a.jpg", "--batch_size", "x"), '--batch-size must be a whole number, not "x"'),
        (("info", "a", "b"), "unrecognized arguments: b"),
        ((*CAPTION, "-x"), "unrecognized arguments: -x"),
        (("experiments", "captfilt"), 'NAME cannot be "captfilt" (did you mean "capfilt"?)'),
        (("capfilt", "decide"), "openblip capfilt-decide needs RUN"),
    ],
)
def test_a_refusal_is_one_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(words)) == 2
    name = "capfilt-decide" if words[0] == "capfilt" else words[0]
    assert capsys.readouterr() == ("", f"openblip: {sentence}; openblip {name} --help says more\n")


def test_help_comes_before_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--beams", "x", "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: openblip caption")
    assert err == ""
