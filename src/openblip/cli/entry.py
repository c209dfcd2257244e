"""Reads the command line and runs the command.

A user's mistake is one sentence on standard error and exit code 2. SIGINT (Ctrl-C) and SIGTERM save what is being
made, say how to go on and exit with 130 and 143.
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
from openblip.cli.checks import check_arguments
from openblip.core.errors import UserError, nearest
from openblip.core.interrupt import AGAIN, RESUME, Stopped, Terminated, ending_at_once

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.replace("_", "-"): command
    for command in (
        *(train.pretrain, train.finetune),
        *(blip2.pretrain_blip2_stage1, blip2.pretrain_blip2_stage2, blip2.finetune_blip2, blip2.cache_features),
        *(use.evaluate, use.caption, use.match, use.ask, use.embed, use.retrieve),
        *(explain.explain, models.info, models.convert),
        *(capfilt.capfilt, capfilt.capfilt_decide, bootstrap.bootstrap),
        experiments.experiments,
        *(make.tokenizer, make.world, make.demo, make.report),
    )
}


_GO_ON = {"capfilt", "cache-features", "bootstrap", "demo", "experiments"}
"""commands that go on by themselves when they are run again"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from openblip.core.memory import keep_freed_memory
    from openblip.core.threads import limit_spinning

    keep_freed_memory()
    limit_spinning()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8 come out as they are
    with ending_at_once():
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> int:
    try:
        _read(arguments)()
        sys.stdout.flush()
    except UserError as error:
        return _say(str(error), 2)
    except Stopped as stopped:
        return _say_stopped(stopped.done, stopped.exit_code, arguments)
    except KeyboardInterrupt as stop:
        return _say_stopped("stopped", 143 if isinstance(stop, Terminated) else 130, arguments)
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
    return 0


def _say_stopped(what: str, code: int, arguments: list[str]) -> int:
    """Say what is saved and how to go on: once, where a launcher started several processes."""
    if os.environ.get("RANK", "0") != "0":
        return code
    name = " ".join(_joined(arguments)[:1])
    if name in COMMANDS and "resume" in inspect.signature(COMMANDS[name]).parameters:
        what += f"; {RESUME}"
    elif name in _GO_ON:
        what += f"; {AGAIN}"
    return _say(what, code)


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
        app.command(_later(name, command), name=name)
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


def _later(name: str, command: Callable[..., None]) -> Any:
    """Reading and running are apart, so that only what is wrong with the arguments is taken for that."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        check_arguments(name, command, args, kwargs)
        command(*args, **kwargs)

    @functools.wraps(command)
    def collect(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(run, *args, **kwargs)

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
    lines = [line.strip("│ ").strip() for line in box.split("\n") if not line.startswith(("╭", "╰"))]
    ruled = next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))
    text = " ".join(line for line in lines[:ruled] if line).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}; openblip {command} --help says more"
