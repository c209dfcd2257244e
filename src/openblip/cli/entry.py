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


_WITH_DATA = {"data", "pairs", "validation", "web", "human"}
"""parameters that name data"""
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
    except RuntimeError as error:
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
    words, root = _without_data_root(name, words)
    _check_names(name, words)
    if name == "train" and _recipe_of_help(words):
        return functools.partial(train.show_recipe, _recipe_of_help(words))
    try:
        # What tyro prints about a mistake goes nowhere: `refusal` says it.
        with contextlib.redirect_stderr(io.StringIO()):
            run, surplus = tyro.cli(
                _later(name, COMMANDS[name]),
                prog=f"openblip {name}",
                args=words,
                config=(tyro.conf.FlagCreatePairsOff,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{refusal(name, COMMANDS[name], words)}; openblip {name} --help says more") from None
    if surplus:
        raise UserError(f"unrecognized arguments: {', '.join(surplus)}; openblip {name} --help says more")
    return functools.partial(_below, root, run) if root else run


def _without_data_root(name: str, words: list[str]) -> tuple[list[str], str]:
    """The words without --data-root, which every command with data has, and its folder, "" for none.

    Raises:
        UserError: no folder follows.
    """
    known = inspect.signature(COMMANDS[name]).parameters if name in COMMANDS else {}
    option = next((word for word in words if word.replace("_", "-").partition("=")[0] == "--data-root"), None)
    if option is None or not (name in ("capfilt", "classify") or _WITH_DATA & known.keys()):
        return words, ""
    place = words.index(option)
    _, given, root = option.partition("=")
    rest = words[place + 1 :]
    if not given:
        root, rest = " ".join(rest[:1]), rest[1:]
    if not root or root.startswith("--"):
        raise UserError("--data-root needs the folder that holds the published datasets")
    return words[:place] + rest, root


def _below(root: str, run: Callable[[], None]) -> None:
    """Run with `root` as the folder of published datasets."""
    os.environ[DATA_ROOT] = os.path.abspath(os.path.expanduser(root))
    run()


def _overview() -> None:
    """Print what `openblip --help` says: all commands in groups."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for group, commands in GROUPS.items():
        table.add_row(f"\n{group}")
        for command in commands:
            summary = (inspect.getdoc(command) or "").partition("\n\n")[0].replace("\n", " ")
            table.add_row(f"  {command.__name__.replace('_', '-')}", summary)
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


def _check_names(name: str, words: list[str]) -> None:
    """Refuse unknown commands and options, naming the nearest, and name options that are missing."""
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        if parts := [one.replace("-", " ", 1) for one in COMMANDS if one.startswith(f"{name}-")]:
            raise UserError(f"{name} is followed by what it is to do: {', '.join(parts)}")
        raise UserError(f'unknown {kind} "{name}"{nearest(name, COMMANDS)}; openblip --help lists them')
    if _asks_for_help(words):
        return
    options = {
        "--" + parameter.name.replace("_", "-"): parameter.default is parameter.empty
        for parameter in inspect.signature(COMMANDS[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--") and word != "--"}
    for option in sorted(given - options.keys()):
        raise UserError(f'openblip {name} has no option "{option}"{nearest(option, options)}')
    missing = [option for option, required in options.items() if required and option not in given]
    if missing:
        raise UserError(f"openblip {name} needs {' and '.join(missing)}; openblip {name} --help says more")
