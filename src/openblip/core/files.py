"""Files that appear whole or not at all, and never outside the folder they belong to."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from openblip.core.errors import UserError
from openblip.core.text import json_bytes, text_bytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "append_jsonl",
    "atomic_path",
    "read_jsonl",
    "read_marker",
    "safe_join",
    "saving_tensors",
    "write_bytes",
    "write_folder",
    "write_json",
    "write_tensors",
    "write_text",
    "write_torch",
]


_SHOWN = 40
"""characters of a name that a temporary one begins with: of at most four bytes each, where 255 bytes are allowed"""


@contextmanager
def _explain_full_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk is full: {path} was not written (what stood there before is untouched); "
                "free some space and run the same command again"
            ) from error
        raise


def _beside(path: Path, ending: str) -> Path:
    """A hidden name in the folder of `path` that no other process takes, on whatever machine, and not too long.

    Whoever removes what a kill has left finds it by how `path` begins and by the ending.
    """
    return path.with_name(f".{path.name[:_SHOWN]}.{secrets.token_hex(8)}.{ending}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed and renamed to `path`, else removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        with _explain_full_disk(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a .safetensors file inside a folder that appears whole (`write_folder`).

    Raises:
        OSError: the file cannot be written; safetensors tells its cause in words alone.
    """
    # Imported here, so that whoever reads and writes other files does without torch.
    from safetensors.torch import save_file

    with saving_tensors(path):
        save_file(tensors, path, metadata={"format": "pt"})


@contextmanager
def saving_tensors(path: Path) -> Iterator[None]:
    """Within, a library writes .safetensors files to `path`, a file or folder.

    Raises:
        OSError: it could not; safetensors tells its cause in words alone.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if (number := re.search(r"os error (\d+)", str(error))) is None:
            raise
        code = int(number.group(1))
        raise OSError(code, os.strerror(code), str(path)) from error


def write_torch(path: Path, value: Any) -> None:
    """Write what `torch.load` reads, to a path of `atomic_path`.

    Raises:
        OSError: the file cannot be written; given a path, torch would tell no cause.
    """
    import torch

    with open(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            if not isinstance(cause := error.__context__, OSError) or cause.errno is None:
                raise
            raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` so that `path` holds either the old or the new content, whatever happens."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text_bytes(text))


def write_json(path: Path | str, value: Any, *, indent: int | None = 2) -> None:
    """`write_bytes` for a JSON value."""
    write_bytes(path, json_bytes(value, indent=indent) + b"\n")


@contextmanager
def write_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path` in one rename, else it is removed.

    A folder already at `path` is moved aside first and removed only once the new one stands.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    temporary.mkdir()
    temporary.chmod(0o755)
    try:
        with _explain_full_disk(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                aside = _beside(path, "old")
                os.replace(path, aside)
                os.replace(temporary, path)
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append_jsonl(path: Path | str, record: dict[str, Any]) -> None:
    """Append one line of JSON; a last line that a kill has cut gives way to it."""
    path = Path(path)
    with _explain_full_disk(path), open(path, "ab+") as file:
        _mend_last_line(file)
        file.write(json_bytes(record) + b"\n")


def _mend_last_line(file: IO[bytes]) -> None:
    """End the last line if only its end is missing, remove it if it was cut."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read() == b"\n":
        return
    file.seek(0)
    last = file.read().rpartition(b"\n")[2]
    try:
        json.loads(last)
    except ValueError:
        file.truncate(end - len(last))
    else:
        file.write(b"\n")


def read_marker(path: Path | str, *names: str) -> dict[str, Any] | None:
    """The object in a JSON file that tells what is done; None where there is none, or where it is broken.

    Args:
        names: that it has, if it is whole.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(names) else None


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read a file that `append_jsonl` wrote; a last line cut by a kill is left out."""
    path = Path(path)
    if not path.exists():
        return []
    records = []
    # Bytes, and split at "\n" alone: a kill may cut a character, and texts may hold other line separators.
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{path} line {number} is not JSON: {reason}; remove or mend that line") from error
    return records


def safe_join(root: Path | str, name: str) -> Path:
    """Return `root / name`, refusing names that lead out of `root`."""
    base = Path(root).resolve()
    target = (base / name).resolve()
    if not target.is_relative_to(base):
        raise UserError(f'"{name}" leads out of {root}; use a path inside that folder')
    return target


def remove_quietly(path: Path | str) -> None:
    """Remove a file or folder if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
