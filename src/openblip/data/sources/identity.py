"""Which image a row shows: the one place where image ids are made.

An id that is missing is the image's own name (its path, or the hash of its bytes). An id that stands at several
images, as where COCO and Visual Genome share a file and count from 1 both, is completed by each image's name, so
that no image takes the place of another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openblip.core.fingerprint import short_hash
from openblip.data.sources.base import string_array, string_of
from openblip.data.sources.cells import given_id
from openblip.data.sources.columns import one_array

__all__ = [
    "id_strings",
    "image_ids",
    "image_name",
    "joined_names",
    "labels_of",
    "needs_name",
    "same_names",
    "settle_ids",
]


def image_name(*images: bytes | str) -> str:
    """What tells the images of a row from others: the path of each, or the hash of its bytes; "" for none."""
    return ",".join(image if isinstance(image, str) else short_hash(image) for image in images)


def joined_names(columns: Sequence[pa.Array]) -> pa.Array:
    """The names of all images of a row, joined by commas where a row has several."""
    comma = pa.scalar(",", pa.large_string())
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, comma)


def id_strings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column of ids as large_string, "" where there is none; see `given_id`."""
    array = one_array(column)
    if pa.types.is_integer(array.type):
        return pc.fill_null(pc.cast(array, pa.large_string()), "")
    return string_array([given_id(cell) for cell in array.to_pylist()])


def needs_name(ids: pa.Array) -> np.ndarray:
    """bool [R]: rows whose id is missing, or stands in several rows; the names of other images are not needed."""
    codes = _codes(ids)
    several = np.bincount(codes)[codes] > 1 if len(codes) else np.zeros(0, bool)
    return several | pc.equal(ids, "").to_numpy(zero_copy_only=False)


def settle_ids(ids: pa.Array, names_of: Callable[[np.ndarray], Sequence[str]]) -> pa.Array:
    """`image_ids` where names are costly, as images have to be read: `names_of` gives those of rows in need."""
    rows = np.flatnonzero(needs_name(ids))
    if not len(rows):
        return ids
    names = np.full(len(ids), "", dtype=object)
    names[rows] = list(names_of(rows))
    return image_ids(ids, string_array(list(names), paths=True))


def image_ids(ids: pa.Array, names: pa.Array) -> pa.Array:
    """The image id of each row, equal for rows of one image and for no others.

    Args:
        ids: large_string [R] as given, "" where missing.
        names: large_string [R], see `image_name`; "" only where `needs_name` is False.
    """
    ids, names = _without_point(ids), same_names(names)
    names_code = _codes(names)
    missing = pc.equal(ids, "").to_numpy(zero_copy_only=False)
    if missing.any():
        # the image may have its id in another row
        owner = np.full(int(names_code.max()) + 1, -1, np.int64)
        given = np.flatnonzero(~missing)[::-1]  # so that the first row of an image stays
        owner[names_code[given]] = given
        named = pc.not_equal(names, "").to_numpy(zero_copy_only=False)
        rows = np.arange(len(ids))
        borrowed = missing & named & (owner[names_code] >= 0)
        rows[borrowed] = owner[names_code[borrowed]]
        ids = ids.take(pa.array(rows))
        ids = pc.if_else(pc.equal(ids, ""), names, ids)
    codes = _codes(ids)
    pairs = np.unique(codes * (int(names_code.max(initial=0)) + 1) + names_code)
    shared = np.bincount(pairs // (int(names_code.max(initial=0)) + 1)) > 1
    if not shared.any():
        return ids
    return _completed(ids, names, np.flatnonzero(shared[codes]))


def same_names(names: pa.Array) -> pa.Array:
    """Paths in one way of writing, so that ./a.jpg and b//../a.jpg are a.jpg."""
    try:
        odd = pc.match_substring_regex(names, r"(^|/)\.{1,2}/|//")
    except pa.ArrowInvalid:  # bytes that are not UTF-8
        odd = pa.array([".." in name or "./" in name or "//" in name for name in map(string_of, names)])
    if not pc.any(odd, min_count=0).as_py():
        return names
    written = [os.path.normpath(string_of(name)) for name in names.filter(odd)]
    return pc.replace_with_mask(names, odd, string_array(written, paths=True))


def _completed(ids: pa.Array, names: pa.Array, rows: np.ndarray) -> pa.Array:
    """`ids` with those of `rows` completed by the image's name, where they stand at several images indeed."""
    where = pa.array(rows)
    given = [string_of(cell) for cell in ids.take(where)]
    own = [string_of(name) for name in names.take(where)]
    images: dict[str, set[str]] = {}
    for image_id, name in zip(given, own, strict=True):
        images.setdefault(image_id, set()).add(name)
    keep = np.array([len(images[image_id]) > 1 for image_id in given])
    mask = np.zeros(len(ids), bool)
    mask[rows[keep]] = True
    full = [f"{i} {n}" for i, n in zip(given, own, strict=True) if len(images[i]) > 1]
    return pc.replace_with_mask(ids, pa.array(mask), string_array(full, paths=True)) if full else ids


def _without_point(ids: pa.Array) -> pa.Array:
    """Integers that pandas wrote as floats (3.0) in every row of a text file, as integers."""
    given = ids.filter(pc.not_equal(ids, ""))
    if not len(given) or not pc.all(pc.match_substring_regex(given, r"^-?\d+\.0$")).as_py():
        return ids
    return pc.replace_substring_regex(ids, r"\.0$", "")


def _codes(strings: pa.Array) -> np.ndarray:
    return pc.dictionary_encode(strings).indices.to_numpy(zero_copy_only=False).astype(np.int64)


def labels_of(paths: Sequence[str], *, stem: bool) -> list[str]:
    """A short name for each file, unique among them: its own, after as much of its folder as it takes.

    Args:
        stem: without the file's ending.
    """
    parts = [os.path.normpath(path).split(os.sep) for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(set(paths)):
            break
    return [os.path.splitext(label)[0] if stem else label for label in labels]
