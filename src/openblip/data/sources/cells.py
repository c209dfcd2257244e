"""What one cell of a table holds, whoever wrote it: an id, texts, an image. None and NaN are nothing, not words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from openblip.core.text import without_halves
from openblip.data.sample import BrokenSample

__all__ = [
    "ID_COLUMNS",
    "IMAGE_COLUMNS",
    "NO_TEXT",
    "READ_COLUMNS",
    "TEXT_COLUMNS",
    "as_texts",
    "given_id",
    "given_texts",
    "is_missing",
    "is_too_deep",
    "row_images",
    "turns",
]

IMAGE_COLUMNS = (
    *("image", "image_path", "img", "img_path", "jpg", "png", "picture", "photo"),
    *("file", "file_name", "filename", "filepath", "file_path", "path"),
    *("image_name", "image_file", "image_filename", "images", "video", "video_path"),
)
TEXT_COLUMNS = (
    *("caption", "captions", "text", "texts", "txt"),
    *("sentence", "sentences", "description", "alt_text"),
    *("comment", "title", "conversations", "messages"),
)
ID_COLUMNS = ("image_id", "img_id", "imgid", "cocoid")
READ_COLUMNS = frozenset((*IMAGE_COLUMNS, *TEXT_COLUMNS, *ID_COLUMNS, "split"))
"""names, in lower case, under which a reader looks for something without being told to"""

_TEXT_FIELDS = ("raw", "caption", "text", "sentence", "description", "phrase", "value")
_MOST_NESTED = 100
_NESTING = (dict, list)
_NO_ID = frozenset({"", "nan", "none", "null", "<na>"})
NO_TEXT = frozenset({"nan", "NaN", "<NA>"})
"""What str() and the csv module make of pandas' missing captions; "None" is an answer that people give."""
_MISSING_TYPES = ("NAType", "NaTType")
"""of pandas, which is not imported for them"""
_ANSWERING = frozenset({"gpt", "assistant", "model"})


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, or the NaN that pandas and its JSON write for it."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (not isinstance(value, str) and type(value).__name__ in _MISSING_TYPES)


def given_id(value: Any) -> str:
    """The image id in a cell as text, "" where there is none.

    A whole float is the integer that it was before a missing value beside it made floats of all: 3.0 is "3".
    The words that str() makes of missing values ("nan", "None") are no ids either.
    """
    if type(value) is int:
        return str(value)
    if is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = value.hex() if isinstance(value, bytes) else str(value).strip()
    return "" if text.lower() in _NO_ID else text


def as_texts(value: Any) -> tuple[str, ...]:
    """`given_texts`, of which halves of characters become "?" whatever the format, see `without_halves`."""
    return tuple(map(without_halves, given_texts(value)))


def given_texts(value: Any) -> tuple[str, ...]:
    """The captions in a cell: a string, a list of strings, or of {"raw"/"caption"/"text": ...}.

    A conversation about the image (LLaVA's, or chat messages) counts as its first answer.

    Raises:
        BrokenSample: "bad-text", bytes that are not UTF-8.
    """
    if isinstance(value, str):
        return (value,) if value.strip() and value.strip() not in NO_TEXT else ()
    if isinstance(value, bytes):
        try:
            return given_texts(value.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BrokenSample("bad-text", "", "the caption is not UTF-8 text") from error
    if isinstance(value, dict):
        return next((given_texts(value[name]) for name in _TEXT_FIELDS if name in value), ())
    if isinstance(value, list | tuple):
        if said := turns(value):
            return next(((text,) for answering, text in said if answering), ())
        return tuple(text for item in value for text in given_texts(item))
    return () if is_missing(value) else (str(value),)


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects stand in one another deeper than data do: readers would meet their limit."""
    level = [value]
    for _ in range(_MOST_NESTED):
        inner = []
        for item in level:
            for cell in item.values() if isinstance(item, dict) else item:
                if isinstance(cell, _NESTING):
                    inner.append(cell)
        if not inner:
            return False
        level = inner
    return True


def turns(value: Any) -> list[tuple[bool, str]]:
    """A conversation as (whether the model speaks, what is said without "<image>"); empty for what is none."""
    if not isinstance(value, list | tuple) or not value:
        return []
    found = []
    for item in value:
        if not isinstance(item, dict) or not ({"from", "role"} & item.keys()):
            return []
        said = as_texts(item["value"] if "value" in item else item.get("content"))
        text = " ".join(said).replace("<image>", "").strip()
        if text:
            found.append((str(item.get("from", item.get("role"))).lower() in _ANSWERING, text))
    return found


def row_images(
    cells: Sequence[Any], columns: Sequence[str], key: str, *, count: int = 1
) -> tuple[bytes | str, ...]:
    """The `count` images in a row's cells, each as encoded bytes or a path; empty where there is none at all.

    A cell may be a path, bytes, {"bytes": ..., "path": ...} as Hugging Face writes, or a list of these (in text
    files, where a row has several images, also written as JSON).

    Raises:
        BrokenSample: "bad-row", another number of images.
    """
    each = [_images(cell, lists=count > 1) for cell in cells]
    given = tuple(image for images in each for image in images)
    if given and len(given) != count:
        empty = [column for column, images in zip(columns, each, strict=True) if not images]
        named = " and ".join(f'"{column}"' for column in empty or columns)
        number = f"{len(given)} image{'s' * (len(given) > 1)}"
        found = f"no image under {named}" if empty else f"the row holds {number} under {named}"
        raise BrokenSample("bad-row", key, f"{found}, where a sample has {count}")
    return given


def _images(value: Any, *, lists: bool) -> tuple[bytes | str, ...]:
    if isinstance(value, str):
        if lists and value.lstrip().startswith("["):
            with suppress(ValueError, RecursionError):
                return _images(json.loads(value), lists=False)
        return (value,) if value.strip() else ()
    if isinstance(value, dict):
        return (value["bytes"],) if value.get("bytes") else _images(value.get("path"), lists=False)
    if isinstance(value, bytes | bytearray | memoryview):
        return (bytes(value),)
    if isinstance(value, Sequence):
        return tuple(image for item in value for image in _images(item, lists=lists))
    return ()
