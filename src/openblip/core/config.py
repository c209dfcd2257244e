"""Typed configurations: frozen dataclasses read from and written to plain data.

A configuration is a keyword-only dataclass of plain values (numbers, strings, booleans, None, tuples,
nested dataclasses). An unknown key, a wrong type or a value outside a `Literal` is an error that names
the field and the nearest valid one, never a silent default.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from openblip.core.errors import TYPE_NAMES, UserError, closest, nearest
from openblip.core.files import write_json
from openblip.core.places import check_config_file
from openblip.core.text import read_json, read_text

__all__ = [
    "differences",
    "from_dict",
    "keep_settings",
    "load",
    "override",
    "read_table",
    "refuse_others",
    "save",
    "to_dict",
]

Config = TypeVar("Config")


def to_dict(config: Any) -> Any:
    """Return `config` as dicts, lists and plain values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_dict(cls: type[Config], data: Any, *, where: str = "") -> Config:
    """Build the dataclass `cls` from plain data, checking every key and type.

    Args:
        where: dotted path of `data` inside a larger configuration, for the messages.

    Raises:
        UserError: an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or cls.__name__} must be a table of settings, not {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in data.items():
        within = f"{where}." if where else ""
        path = within + key
        if key not in fields:
            raise UserError(f'unknown setting "{path}"{nearest(key, fields, within)}')
        values[key] = _convert(hints[key], value, path)
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in values and no_default:
            raise UserError(f'setting "{where}.{name}" is missing'.replace('".', '"'))
    try:
        return cls(**values)
    except UserError:
        raise
    except (ValueError, ArithmeticError) as error:  # a width that is divided by no heads
        raise UserError(f"{where or cls.__name__}: {error}") from error


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(get_args(hint), value, path)
    if origin is typing.Literal:
        if value not in get_args(hint):
            raise UserError(f'setting "{path}" cannot be {value!r}{nearest(str(value), map(str, get_args(hint)))}')
        return value
    if origin in (tuple, list, Sequence):
        return _convert_sequence(origin, get_args(hint), value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f'setting "{path}" must be a table, not {value!r}')
        return {key: _convert(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where=path)  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise UserError(f'setting "{path}" must be {TYPE_NAMES.get(hint, hint.__name__)}, not {value!r}')
    return value


def _convert_union(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in choices:
        return None
    error: UserError | None = None
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _convert(choice, value, path)
        except UserError as failed:
            error = error or failed
    raise error or UserError(f'setting "{path}" cannot be {value!r}')


def _convert_sequence(origin: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise UserError(f'setting "{path}" must be a list, not {value!r}')
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise UserError(f'setting "{path}" must hold {len(args)} values, not {len(value)}')
        return tuple(
            _convert(arg, item, f"{path}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True))
        )
    inner = args[0] if args else Any
    items = tuple if origin is tuple else list
    return items(_convert(inner, item, f"{path}[{i}]") for i, item in enumerate(value))


def read_table(path: Path | str) -> dict[str, Any]:
    """Read the plain data of a .toml or .json file."""
    path = Path(path)
    check_config_file(path)
    try:
        data = tomllib.loads(read_text(path)) if path.suffix == ".toml" else read_json(path)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} cannot be read as TOML: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} must be a table of settings, not {data!r}")
    return data


def load(path: Path | str, cls: type[Config]) -> Config:
    """Read a configuration from a .toml or .json file."""
    data = read_table(path)
    try:
        return from_dict(cls, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def save(config: Any, path: Path | str) -> None:
    """Write a configuration as JSON, atomically."""
    write_json(path, to_dict(config))


def override(config: Config, assignments: Iterable[str]) -> Config:
    """Apply `["train.lr=1e-4", ...]`; a value is read as JSON, as text, or as items between commas, as fits.

    One that is refused is tried again after the others: a setting may be right beside another value only.
    """
    data = to_dict(config)
    waiting = list(assignments)
    while waiting:
        refused: dict[str, UserError] = {}
        for assignment in waiting:
            table, name, text = _place(data, assignment)
            before = table[name]
            for value in _readings(text):
                table[name] = value
                try:
                    config = from_dict(type(config), data)
                    break
                except UserError as error:
                    refused.setdefault(assignment, error)
            else:
                table[name] = before
                continue
            refused.pop(assignment, None)
        if len(refused) == len(waiting):
            raise refused[waiting[0]]
        waiting = list(refused)
    return config


def _place(data: dict[str, Any], assignment: str) -> tuple[dict[str, Any], str, str]:
    """The table that an assignment changes, the name in it, and the value as text."""
    dotted, separator, text = assignment.partition("=")
    if not separator:
        raise UserError(f'"{assignment}" sets nothing; write NAME=VALUE, for example train.learning_rate=1e-4')
    dotted = dotted.strip()
    *parents, last = dotted.split(".")
    table = data
    for name in parents:
        if not isinstance(table.get(name), dict):
            raise UserError(f'unknown setting "{dotted}"{_elsewhere(dotted, data) or nearest(name, table)}')
        table = table[name]
    if last not in table:
        hint = _elsewhere(dotted, data) or nearest(last, table, dotted.removesuffix(last))
        raise UserError(f'unknown setting "{dotted}"{hint}')
    return table, last, text.strip()


def _elsewhere(dotted: str, data: dict[str, Any]) -> str:
    """A hint at the setting of another table that is called so."""
    last = dotted.rpartition(".")[2]
    return closest(dotted, [name for name in _dotted(data) if name.rpartition(".")[2] == last])


def _dotted(data: dict[str, Any], before: str = "") -> Iterator[str]:
    """The settings of a table and of those within, as they are written in an assignment."""
    for name, value in data.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{before}{name}.")
        else:
            yield before + name


def _readings(text: str) -> Iterator[Any]:
    """What a value may mean, the likeliest first: a text may look like a number, and "0" mean false."""
    yield _parse(text)
    yield text
    if text in ("0", "1"):
        yield text == "1"
    if not text.startswith("["):
        yield [part for part in text.split(",") if part]


def _parse(text: str) -> Any:
    spelled = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in spelled:
        return spelled[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def differences(old: Any, new: Any, *, where: str = "") -> list[str]:
    """List what differs between two configurations (or their dicts), as "a.b: 1 -> 2"."""
    old, new = to_dict(old), to_dict(new)
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            path = f"{where}.{key}" if where else key
            found += differences(old.get(key), new.get(key), where=path)
        return found
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


def keep_settings(path: Path, config: Any, what: str) -> None:
    """Write the settings of `what` to the file `path`, or check that the file holds the same ones.

    Raises:
        UserError: it holds other settings.
    """
    if path.exists():
        refuse_others(path.parent, read_json(path), config, what)
    else:
        save(config, path)


def refuse_others(folder: Path, kept: Any, config: Any, what: str) -> None:
    """Check that the settings `kept` in a folder are those of `config`.

    Raises:
        UserError: they differ; names the first difference.
    """
    if changed := differences(kept, config):
        raise UserError(f"{folder} holds {what} with other settings ({changed[0]}); choose another folder (--out)")
