"""Reads the command line and runs the command.

A user's mistake is one sentence on standard error and exit code 2; Ctrl-C saves what is being trained, says
how to go on and exits with 130.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import tyro

from openblip.cli import blip2, bootstrap, capfilt, experiments, explain, make, models, train, use
from openblip.core.errors import UserError, nearest

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.replace("_", "-"): command
    for command in (
        *(train.pretrain, train.finetune),
        *(blip2.pretrain_blip2_stage1, blip2.pretrain_blip2_stage2, blip2.finetune_blip2, blip2.cache_features),
        *(use.evaluate, use.caption, use.match, use.ask, use.embed, use.retrieve),
        *(explain.explain, models.info, models.convert),
        *(capfilt.capfilt, capfilt.capfilt_decide, bootstrap.bootstrap),
        *(experiments.experiments, experiments.compare),
        *(make.tokenizer, make.world, make.demo, make.report),
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from openblip.core.memory import keep_freed_memory

    keep_freed_memory()
    try:
        _read(sys.argv[1:] if arguments is None else arguments)()
        sys.stdout.flush()
    except UserError as error:
        return _say(str(error), 2)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except BrokenPipeError:
        # Who reads the pipe has enough (`openblip caption ... | head`); what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        return _say(f"{error.filename}: {error.strerror}", 2)
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        # `training.interrupt.Interrupted`, which is not imported before it can be raised.
        if not hasattr(error, "exit_code"):
            raise
        return _say(str(error), int(error.exit_code))
    return 0


def _say(message: str, code: int) -> int:
    print(f"openblip: {message}", file=sys.stderr)
    return code


def _read(arguments: list[str]) -> Callable[[], None]:
    """The command with its arguments, ready to run.

    Raises:
        UserError: the arguments cannot be understood.
        SystemExit: help was asked for, and printed.
    """
    if arguments == ["--version"]:
        from openblip import __version__

        return functools.partial(print, f"openblip {__version__}")
    arguments = _joined(arguments)
    _check_names(arguments)
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        app.command(_later(command), name=name)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return app.cli(
                prog="openblip",
                description="BLIP, maintained and complete: train it, use it, measure it. openblip COMMAND --help "
                "says more; openblip --version is for reports of bugs.",
                args=arguments or ["--help"],
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_sentence(complaint.getvalue(), arguments[0])) from None


def _joined(arguments: list[str]) -> list[str]:
    """A command of two words as one: "capfilt decide" is capfilt-decide."""
    name = "-".join(arguments[:2])
    return [name, *arguments[2:]] if name in COMMANDS else arguments


def _later(command: Callable[..., None]) -> Any:
    """Reading and running are apart, so that only what is wrong with the arguments is taken for that."""

    @functools.wraps(command)
    def collect(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return collect


def _check_names(arguments: list[str]) -> None:
    """Refuse unknown commands and options, naming the nearest, and name options that are missing."""
    if not arguments or arguments[0] in ("-h", "--help"):
        return
    name, *rest = arguments
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise UserError(f'unknown {kind} "{name}"{nearest(name, COMMANDS)}; openblip --help lists them')
    if "-h" in rest or "--help" in rest:
        return
    options = {
        "--" + parameter.name.replace("_", "-"): parameter.default is parameter.empty
        for parameter in inspect.signature(COMMANDS[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    given = {word.partition("=")[0].replace("_", "-") for word in rest if word.startswith("--") and word != "--"}
    for option in sorted(given - options.keys()):
        raise UserError(f'openblip {name} has no option "{option}"{nearest(option, options)}')
    missing = [option for option, required in options.items() if required and option not in given]
    if missing:
        raise UserError(f"openblip {name} needs {' and '.join(missing)}; openblip {name} --help says more")


def _sentence(box: str, command: str) -> str:
    """The first paragraph of tyro's framed complaint, as a sentence."""
    lines = [line.strip("│ ").strip() for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    ruled = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    text = " ".join(line for line in lines[:ruled] if line).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; openblip {command} --help says more"
