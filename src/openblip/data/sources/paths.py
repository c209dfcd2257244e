"""Where the images that a captions file names lie: its own folder, `image_root`, or several roots."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from openblip.core.errors import UserError
from openblip.core.places import local_path, missing_data
from openblip.core.text import read_lines
from openblip.data.sample import BrokenSample
from openblip.data.sources.cells import IMAGE_COLUMNS, given_id

__all__ = ["image_roots", "locate_image", "name_images", "named_videos"]

_MAPPING = "youtube_mapping.txt"
_PLACE = re.compile(r"\{(\w+)(?::0(\d+)|:(name))?\}")


def image_roots(given: str, default: str) -> tuple[str, ...]:
    """The folders of `image_root` ("a", or several as "a+b"), absolute; `default` where none is given.

    Raises:
        UserError: one of them is not there.
    """
    whole = os.path.expanduser(local_path(given)) or default
    several = [whole] if os.path.isdir(whole) or not given else whole.split("+")
    for root in several:
        if given and not os.path.isdir(os.path.expanduser(local_path(root))):
            raise UserError(f"image_root: {missing_data(root)}; several folders are written as image_root=a+b")
    return tuple(os.path.abspath(os.path.expanduser(local_path(root))) for root in several)


def locate_image(name: str, roots: tuple[str, ...], *, key: str, absolute: bool) -> Path:
    """Return the path of an image that a captions file names.

    The check is on the written path: links inside the folder may lead elsewhere, as its owner wishes.

    Args:
        roots: absolute and normalised; the path must stay inside one of them. Of several, the one that has it.
        absolute: accept an absolute `name` wherever it leads.

    Raises:
        BrokenSample: "bad-row", the path leaves the roots, is a web address, or is there under several roots.
    """
    name = local_path(name)
    if "://" in name:
        raise BrokenSample("bad-row", key, f"{name} is a web address; download the images first")
    if "\0" in name:
        raise BrokenSample("bad-row", key, f"{name!r} is no path")
    inside = []
    for root in roots:
        path = os.path.normpath(os.path.join(root, name))
        if path.startswith(root.rstrip(os.sep) + os.sep) and path not in inside:
            inside.append(path)
    if len(inside) > 1:
        there = [path for path in inside if os.path.exists(path)]
        if len(there) > 1:
            raise BrokenSample("bad-row", key, f"{name} is an image under several roots: {', '.join(there)}")
        inside = there or inside
    if inside:
        return Path(inside[0])
    if absolute and os.path.isabs(name):
        return Path(os.path.normpath(name))
    hint = "; set absolute_paths if you trust the file" if os.path.isabs(name) else ""
    raise BrokenSample("bad-row", key, f"{name} leads out of {' and '.join(roots)}{hint}")


def name_images(
    rows: Iterable[tuple[str, dict[str, Any] | BrokenSample]], pattern: str
) -> Iterator[tuple[str, dict[str, Any] | BrokenSample]]:
    """Rows with "image" made of their other columns; see `SourceConfig.image_name`.

    Raises:
        UserError: the pattern holds no column.
    """
    if not _PLACE.search(pattern):
        raise UserError(f'image_name="{pattern}" names no column; write one as in "{{image_id:012}}.jpg"')
    for label, row in rows:
        if isinstance(row, BrokenSample):
            yield label, row
            continue
        cells = {match[1]: given_id(row.get(match[1])) for match in _PLACE.finditer(pattern)}
        if all(cells.values()):
            name = pattern
            for match in _PLACE.finditer(pattern):
                cell = os.path.basename(cells[match[1]]) if match[3] else cells[match[1]]
                name = name.replace(match[0], cell.zfill(int(match[2] or 0)))
            yield label, {**row, "image": name}
        elif any(name.strip().lower() in IMAGE_COLUMNS for name in row):
            yield label, row
        else:
            empty = next(name for name, cell in cells.items() if not cell)
            yield label, BrokenSample("bad-row", label, f'no "{empty}" to name its image with')


def named_videos(
    rows: Iterator[tuple[str, dict[str, Any] | BrokenSample]], folder: Path
) -> Iterator[tuple[str, dict[str, Any] | BrokenSample]]:
    """Rows of MSVD-QA with "video": theirs have a number, and youtube_mapping.txt beside them says which it is.

    Args:
        folder: of the file; without a mapping in it the rows come as they are.
    """
    return _mapped(rows, folder / _MAPPING) if (folder / _MAPPING).is_file() else rows


def _mapped(
    rows: Iterator[tuple[str, dict[str, Any] | BrokenSample]], mapping: Path
) -> Iterator[tuple[str, dict[str, Any] | BrokenSample]]:
    lines = (line.split() for line in read_lines(mapping))
    names = {line[1]: line[0] for line in lines if len(line) == 2}  # -4wsuPCjDBc_5_15 vid1
    for label, row in rows:
        if isinstance(row, BrokenSample) or "video_id" not in row or any(n.lower() in IMAGE_COLUMNS for n in row):
            yield label, row
        elif name := names.get(f"vid{given_id(row['video_id'])}"):
            yield label, {**row, "video": f"{name}.avi"}
        else:
            yield label, BrokenSample("bad-row", label, f"{mapping.name} has no vid{row['video_id']!s:.40}")
