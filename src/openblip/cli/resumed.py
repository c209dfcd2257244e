"""A file of JSON lines that a stopped command continues: what it depends on is noted beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.locks import locked
from openblip.core.text import read_json

__all__ = ["begin_or_continue", "can_continue", "only_writer"]

_NOTED = ".run.json"
"""of the file beside the results that says what they depend on"""
_OPTIONS = {"num_beams": "beams", "num_sequences": "num-captions", "top_p": "nucleus", "sample": "sampling"}
"""of settings that options call otherwise"""


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Be the only command that writes to `out`.

    Raises:
        UserError: another one does.
    """
    lock = out.with_name(f".{out.name}.lock")
    with locked(
        lock, f"another command is writing to {out}; wait until it has ended, or choose a new file"
    ) as held:
        try:
            yield
        finally:
            if held:
                with suppress(OSError):
                    lock.unlink()


def can_continue(out: Path) -> bool:
    """Whether `out` holds results that --resume continues."""
    return out.is_file() and out.with_name(out.name + _NOTED).is_file()


def begin_or_continue(out: Path, key: str, settings: Mapping[str, Any]) -> set[str]:
    """The values of `key` in the results that are there; what they depend on is noted where there are none.

    A last line without its end, which was being written, is cut off.

    Args:
        settings: what the results depend on, for JSON.

    Raises:
        UserError: the file is none of these results, or of other settings.
    """
    noted = out.with_name(out.name + _NOTED)
    if out.suffix.lower() == ".parquet":
        raise UserError(f"{out}: a parquet file cannot be continued; give a .jsonl file")
    if not noted.is_file():
        if out.exists():
            raise UserError(
                f"{out} was not begun with --resume ({noted.name} is not beside it), so it is not continued; "
                "choose a new file"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(noted, dict(settings))
        return set()
    before = read_json(noted)
    if not isinstance(before, Mapping):
        raise UserError(f"{noted} does not say what {out} was begun with; choose a new file")
    if changed := _changes(before, settings):
        if any(line.startswith("nucleus:") for line in changed):  # which samples
            changed = [line for line in changed if not line.startswith("sampling:")]
        raise UserError(
            f"{out} was begun with other settings ({'; '.join(changed)}), so it is not continued; "
            "give them as they were, or choose a new file"
        )
    return _values(out, key) if out.exists() else set()


def _changes(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs, called as the options, with both values: "beams: 3 then, 2 now"."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [line for one in {**before, **now} for line in _changes(before.get(one), now.get(one), one)]
    called = _OPTIONS.get(name, name.replace("_", "-"))
    return [] if before == now else [f"{called}: {_spelled(before)} then, {_spelled(now)} now"]


def _spelled(value: Any) -> str:
    return "none" if value is None else value if value and isinstance(value, str) else json.dumps(value)


def _values(out: Path, key: str) -> set[str]:
    if not out.is_file():
        raise UserError(f"{out} is no file, so it cannot be continued; choose a new file")
    found: set[str] = set()
    with open(out, "rb+") as file:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                found.add(json.loads(line)[key])
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    f'{out}, line {number} is no result with "{key}", so it is not continued; choose a new file'
                ) from None
            end += len(line)
        file.truncate(end)
    return found
