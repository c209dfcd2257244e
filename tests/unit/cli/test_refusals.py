"""What tyro refuses is said in one sentence, whatever it prints itself."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from openblip.cli import entry
from openblip.cli.entry import COMMANDS, main
from openblip.cli.helps import for_tyro

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
        (("capfilt", "decide"), "openblip capfilt decide needs RUN"),
        (("judge", "a.png", "--model", "m"), "openblip judge needs RIGHT"),
    ],
)
def test_a_refusal_is_one_sentence(
    words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(words)) == 2
    name = "capfilt decide" if words[0] == "capfilt" else words[0]
    assert capsys.readouterr() == ("", f"openblip: {sentence}; openblip {name} --help says more\n")


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (("recipes",), "recipes [-h] [NAME]"),
        (("datasets",), "datasets [-h] [NAME]"),
        (("index", "search"), "index search [-h] [OPTIONS] [QUERY]"),
        (("index", "add"), "index add [-h] [OPTIONS] [DATA ...]"),
        (("capfilt", "decide"), "capfilt decide [-h] [OPTIONS] RUN"),
    ],
)
def test_the_usage_is_what_is_typed(words: tuple[str, ...], usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: openblip {usage}")


@pytest.mark.parametrize("name", COMMANDS)
def test_helps_are_phrases(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, which tyro breaks to fit; one sentence ends without a full stop; no choice is Python's None."""
    assert main([name, "--help"]) == 0
    assert not re.search(r"\{[^}]*None[^}]*\}", capsys.readouterr().out)
    helps = (for_tyro(name, COMMANDS[name], print).__doc__ or "").partition("Args:")[2]
    for line in helps.splitlines():
        assert not line.startswith(" " * 8), line
        if line.startswith(" "):  # what follows the arguments is told below them
            assert not line.endswith(".") or re.search(r"[^.]\. ", line), line


def test_help_comes_before_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--beams", "x", "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: openblip caption")
    assert err == ""


@pytest.mark.parametrize(
    ("error", "words", "told"),
    [
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
            ["caption", "a.jpg", "--model", "m"],
            "openblip: the GPU has not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB); lower",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            ["train", "blip-caption", "a/", "--model", "m", "--out", "r"],
            "openblip: the GPU has not enough memory (CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            ["train", "blip-caption", "a/", "--model", "m", "--out", "r"],
            "openblip: there is not enough memory ([enforce",
        ),
        (
            MemoryError(),
            ["capfilt", "a/", "b/", "--filter", "m"],
            "openblip: there is not enough memory (MemoryError); lower --batch-size",
        ),
    ],
    ids=["gpu", "cublas", "cpu", "python"],
)
def test_too_little_memory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: list[str],
    told: str,
) -> None:
    def read(arguments: list[str]) -> Callable[[], None]:
        def fail() -> None:
            raise error

        return fail

    monkeypatch.setattr(entry, "_read", read)
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(told)
    assert err.count("\n") == 1
    assert ("train.gradient_checkpointing=1" in err) == (words[0] == "train")


def test_other_errors_of_a_computation_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("expected scalar type Float but found BFloat16")

    monkeypatch.setattr(entry, "_read", lambda arguments: fail)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        main(["caption", "a.jpg", "--model", "m"])
