"""Says in a sentence why tyro refuses a command's arguments.

tyro prints what is wrong in a drawn box, and its public interface gives the reason in no other form. Here each
option is looked at alone, with tyro deciding about single values, so that nothing depends on how the box is drawn.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from openblip.core.errors import TYPE_NAMES, first_line, nearest
from openblip.core.memory import gpu_lacks_memory, host_lacks_memory

__all__ = ["out_of_memory", "refusal"]


def refusal(name: str, signature: inspect.Signature, words: Sequence[str]) -> str:
    """Why `words` are no arguments of the command `name`; tyro has refused them, and their options exist."""
    parameters = signature.parameters.values()
    kinds = {"--" + p.name.replace("_", "-"): _bare(p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY}
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    alone: list[str] = []
    rest = list(words)
    while rest:
        option, equals, value = rest[0].partition("=")
        option = option.replace("_", "-")
        word = rest.pop(0)
        if option not in kinds:
            alone.append(word)
        elif kinds[option] is not bool:
            if not equals and (not rest or rest[0].partition("=")[0] in kinds):
                return f"{option} needs a value"
            value = value if equals else rest.pop(0)
            if not _accepts(kinds[option], value):
                return f"{option} {_must_be(kinds[option], value)}"
    for parameter, word in zip(positional, alone, strict=False):
        if not _accepts(kind := _bare(parameter.annotation), word):
            return f"{_shown(parameter)} {_must_be(kind, word)}"
    missing = [_shown(p) for p in positional[len(alone) :] if p.default is p.empty]
    return f"openblip {name} needs {' and '.join(missing)}" if missing else "these arguments cannot be read"


def _shown(parameter: inspect.Parameter) -> str:
    """What the help calls a positional argument."""
    given = [getattr(one, "metavar", None) for one in get_args(parameter.annotation)[1:]]
    return next(filter(None, given), parameter.name.upper()).strip("[]")


def _bare(annotation: Any) -> Any:
    """A type without what is annotated; of many values, that of one."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is tuple else annotation


def _accepts(kind: Any, value: str) -> bool:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tyro.cli(kind, args=[value])
    except SystemExit:
        return False
    return True


def _must_be(kind: Any, value: str) -> str:
    if get_origin(kind) is Literal:
        return f'cannot be "{value}"{nearest(value, map(str, get_args(kind)))}'
    called = [TYPE_NAMES[one] for one in get_args(kind) or (kind,) if one in (int, float)]
    return f'must be {" or ".join(called)}, not "{value}"' if called else f'cannot be "{value}"'


def out_of_memory(error: Exception, words: Sequence[str]) -> str:
    """What to do where the memory of a GPU, or of this machine, did not suffice; "" for any other error."""
    on_gpu = gpu_lacks_memory(error)
    if not on_gpu and not host_lacks_memory(error):
        return ""
    where = "the GPU has not enough memory" if on_gpu else "there is not enough memory"
    if words[:1] == ["train"]:
        remedy = (
            "resume with --set train.gradient_checkpointing=1, or begin anew with a lower batch_size and more "
            "train.gradient_accumulation; --dry-run predicts what fits"
        )
    else:
        remedy = "lower --batch-size, or compute in --dtype bfloat16, where the command has these options"
    return f"{where} ({first_line(error)}); {remedy}"
