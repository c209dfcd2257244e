"""Reads the command line and runs the command.

A user's mistake is one sentence on standard error and exit code 2; output that a full disk does not take is one
with exit code 1. SIGINT (Ctrl-C) and SIGTERM save what is being made, say how to resume and exit with 130 and 143.
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

from openblip.cli import (
    bootstrap,
    capfilt,
    caption,
    classify,
    datasets,
    evaluate,
    experiments,
    explain,
    features,
    index,
    index_export,
    judge,
    make,
    models,
    probe,
    recipes,
    score,
    serve,
    train,
    use,
)
from openblip.cli.checks import check_arguments
from openblip.cli.helps import arguments_of, for_tyro, typed
from openblip.cli.launched import first_to_tell, is_first
from openblip.cli.refusals import out_of_memory, refusal
from openblip.cli.results import FULL_DISK
from openblip.core.errors import ToldElsewhere, UserError, nearest
from openblip.core.interrupt import AGAIN, RESUME, Stopped, Terminated, ending_at_once
from openblip.core.places import DATA_ROOT

__all__ = ["COMMANDS", "main"]

GROUPS: dict[str, tuple[Callable[..., None], ...]] = {
    "train": (train.train, recipes.recipes, features.cache_features),
    "use": (
        *(caption.caption, use.match, score.score, classify.classify, use.ask, judge.judge),
        *(use.embed, use.retrieve, evaluate.evaluate, probe.probe),
        explain.explain,
        serve.serve,
    ),
    "index": (
        *(index.index_build, index.index_add, index.index_remove),
        *(index.index_search, index.index_duplicates, index.index_info, index_export.index_export),
    ),
    "models": (models.info, models.convert),
    "bootstrap": (capfilt.capfilt, capfilt.capfilt_decide, bootstrap.bootstrap),
    "data": (datasets.datasets, make.world, make.tokenizer),
    "show": (make.demo, experiments.experiments, make.report),
}
"""as `openblip --help` lists them"""
COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.replace("_", "-"): command for group in GROUPS.values() for command in group
}

_GO_ON = {"capfilt", "cache-features", "bootstrap", "demo", "experiments", "index-build", "index-add", "probe"}
"""commands that resume by themselves when they are run again"""


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
    code = 0
    try:
        try:
            _read(arguments)()
        except SystemExit as stop:
            code = int(stop.code or 0)
        # Also after a command that ends by its exit code: what a full disk does not take is told here.
        sys.stdout.flush()
    except ToldElsewhere:
        return 2
    except UserError as error:
        return _say(str(error), 2) if first_to_tell(str(error)) else 2
    except Stopped as stopped:
        return _say_stopped(stopped.done, stopped.exit_code, arguments)
    except KeyboardInterrupt as stop:
        return _say_stopped("stopped", 143 if isinstance(stop, Terminated) else 130, arguments)
    except BrokenPipeError:
        # Who reads the pipe has enough (`openblip caption ... | head`); what is still buffered goes nowhere.
        _drop_output()
        return 141
    except OSError as error:
        if error.filename is None and error.errno in FULL_DISK:  # standard output has no name
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            _drop_output()
            return _say(f"the output cannot be written: {error.strerror}", 1)
        if error.filename is None or error.strerror is None:
            raise
        message = f"{error.filename}: {error.strerror}"
        return _say(message, 2) if first_to_tell(message) else 2
    except (RuntimeError, MemoryError) as error:
        if not (message := out_of_memory(error, arguments)):
            raise
        return _say(message, 1)
    return code


def _drop_output() -> None:
    """Let what is still buffered for standard output go nowhere: Python writes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_stopped(what: str, code: int, arguments: list[str]) -> int:
    """Say what is saved and how to resume: once, where a launcher started several processes."""
    if not is_first():
        return code
    name = " ".join(_joined(arguments)[:1])
    begun = "--dry-run" not in (word.replace("_", "-") for word in arguments)
    if name == "caption":
        if "--resume" in arguments or ("txt" in arguments and "--existing" not in arguments):
            what += f"; {AGAIN}"
    elif begun and name in COMMANDS and "resume" in inspect.signature(COMMANDS[name]).parameters:
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
        SystemExit: help was requested, and printed.
    """
    if arguments == ["--version"]:
        from openblip import __version__

        return functools.partial(print, f"openblip {__version__}")
    if not arguments or arguments[0] in ("-h", "--help"):
        return _overview
    name, *words = _joined(arguments)
    _check_names(name, words)
    if name == "train" and _recipe_of_help(words):
        return functools.partial(train.show_recipe, _recipe_of_help(words))
    command = COMMANDS[name]
    try:
        # What tyro prints about a mistake goes nowhere: `refusal` says it.
        with contextlib.redirect_stderr(io.StringIO()):
            run, surplus = tyro.cli(
                for_tyro(name, command, functools.partial(_checked, name)),
                prog=f"openblip {typed(name)}",
                args=words,
                config=(tyro.conf.FlagCreatePairsOff,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        said = refusal(typed(name), arguments_of(name, command), words)
        raise UserError(f"{said}; openblip {typed(name)} --help says more") from None
    if surplus:
        raise UserError(f"unrecognized arguments: {', '.join(surplus)}; openblip {typed(name)} --help says more")
    return run


def _checked(name: str, *args: Any, **options: Any) -> None:
    """Run a command. Reading its arguments is apart, so that only what is wrong with them is taken for that.

    Raises:
        UserError: what they name is not there.
    """
    command = COMMANDS[name]
    if "data_root" in options and "data_root" not in inspect.signature(command).parameters:
        root = options.pop("data_root")
        if root == "":
            raise UserError("--data-root needs the folder that holds the published datasets")
        if root is not None:
            os.environ[DATA_ROOT] = os.path.abspath(os.path.expanduser(root))
    check_arguments(name, command, args, options)
    command(*args, **options)


def _overview() -> None:
    """Print what `openblip --help` says: all commands in groups."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for group, commands in GROUPS.items():
        table.add_row(f"\n{group}")
        for command in commands:
            summary = (inspect.getdoc(command) or "").partition("\n\n")[0].replace("\n", " ")
            table.add_row(f"  {typed(command.__name__.replace('_', '-'))}", summary)
    console = Console(highlight=False)
    console.print("openblip COMMAND ...: train, use, bootstrap and evaluate BLIP and BLIP-2.")
    console.print(table)
    console.print("\nCommands with data take published datasets as coco:test, below --data-root or OPENBLIP_DATA.")
    console.print("openblip COMMAND --help says more; openblip --version is for bug reports.")


def _asks_for_help(words: list[str]) -> bool:
    return "-h" in words or "--help" in words


def _joined(arguments: list[str]) -> list[str]:
    """A command of two words as one: "capfilt decide" is capfilt-decide."""
    name = "-".join(arguments[:2])
    return [name, *arguments[2:]] if name in COMMANDS else arguments


def _recipe_of_help(arguments: list[str]) -> str:
    """The recipe whose help is requested: `openblip train RECIPE --help`."""
    named = arguments[:1]
    wanted = {"-h", "--help"}.intersection(arguments)
    return named[0] if wanted and named and not named[0].startswith("-") and not train.is_file(named[0]) else ""


def _check_names(name: str, words: list[str]) -> None:
    """Refuse unknown commands and options, naming the nearest, and name options that are missing."""
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = [typed(one) for one in COMMANDS]
        if parts := [one.removeprefix(f"{name} ") for one in known if one.startswith(f"{name} ")]:
            if words and not words[0].startswith("-"):
                meant = nearest(words[0], parts)
                raise UserError(f'unknown command "{name} {words[0]}"{meant}; openblip --help lists them')
            all_of_them = ", ".join(f"{name} {part}" for part in parts)
            raise UserError(f"{name} is followed by what it is to do: {all_of_them}")
        raise UserError(f'unknown {kind} "{name}"{nearest(name, known)}; openblip --help lists them')
    if _asks_for_help(words):
        return
    options = {
        "--" + parameter.name.replace("_", "-"): parameter.default is parameter.empty
        for parameter in arguments_of(name, COMMANDS[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--") and word != "--"}
    for option in sorted(given - options.keys()):
        raise UserError(f'openblip {typed(name)} has no option "{option}"{nearest(option, options)}')
    missing = [option for option, required in options.items() if required and option not in given]
    if missing:
        said = f"openblip {typed(name)} needs {' and '.join(missing)}"
        raise UserError(f"{said}; openblip {typed(name)} --help says more")
