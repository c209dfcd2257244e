"""Whether what a user names is there, told from names and files alone: no library of models is imported for it.

The command line calls these before it imports torch, so that a mistake is answered at once; whoever opens a model,
images or data calls them again, so that both say the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from openblip.core.errors import UserError, nearest

__all__ = ["QUERY", "check_data", "check_model", "check_new_file", "check_picture", "local_path", "missing_data"]

QUERY = re.compile(r"^(?P<path>.*?)\?(?P<query>\w+=[^?]*)$", re.DOTALL)
"""a data spec with settings: PATH?name=value&..."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(@[\w./-]+)?")
_FILE = "file://"
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")


def local_path(name: str) -> str:
    """`name` without "file://" and its escapes."""
    if not name.startswith(_FILE):
        return name
    return unquote(name[len(_FILE) :].removeprefix("localhost"), errors="surrogateescape")


def check_model(source: Path | str) -> None:
    """Refuse what is neither here nor a name that the hub could know.

    Raises:
        UserError: there is no such folder or file, and it is no hub name.
    """
    path = Path(source)
    if not path.exists() and (not _HUB_NAME.fullmatch(str(source)) or path.suffix in _WEIGHTS):
        raise UserError(f"there is no model at {path}; give a model's folder, a checkpoint file or a hub name")


def check_picture(place: Path | str) -> None:
    """Refuse a place of images that is not here; patterns are left to those who look for them.

    Raises:
        UserError: there is no such file or folder.
    """
    place = local_path(str(place))
    if "://" in place and not Path(place).exists():
        raise UserError(f"{place} is a web address; download the image and give its path")
    if not Path(place).exists() and not any(letter in place for letter in "*?["):
        raise UserError(f"there is no picture or folder {place}")


def check_data(spec: str) -> None:
    """Refuse a data spec whose path is not here; the hub, worlds, patterns and ranges are left to who opens them.

    Raises:
        UserError: there is no such file or folder; names the nearest one beside it.
    """
    match = QUERY.match(spec)
    place = spec if match is None or Path(spec).exists() else match["path"]
    elsewhere = place.startswith(("world:", "hf:", "pipe:")) or "://" in place
    if elsewhere or any(letter in place for letter in "*?[{"):
        return
    path = Path(place).expanduser()
    if not path.exists():
        raise UserError(missing_data(place))


def missing_data(place: str) -> str:
    """The sentence about a path of data that leads nowhere."""
    path = Path(place).expanduser()
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, there)
    return f"there is no file or folder {place}{close if 'did you mean' in close else ''}"


def check_new_file(out: Path | None) -> None:
    """Refuse to write over a file of results.

    Raises:
        UserError: it exists.
    """
    if out is not None and out.exists():
        raise UserError(f"{out} exists already; choose a new file")
