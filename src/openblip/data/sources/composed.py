"""Composed retrieval: from an image and a text that says what is to be different, to another image of a gallery.

    source = open_composed("cirr/captions/cap.rc2.val.json?image_root=nlvr2/images")
    source[0].key, queries_of(source[0].meta)      # an image of the gallery, and what is asked from it

Forms: CIRR's cap.*.json ("reference", "caption", "target_hard", and "img_set" with its six "members"), FashionIQ's
("candidate", two "captions", "target"), and rows of one's own ("reference", "text", "target"; JSON or JSON lines).
The gallery is split.*.json beside a file called cap.*.json or in ../image_splits, a list of names or paths by name;
for files of other names it is all images that the rows name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.core.errors import UserError
from openblip.core.kinds import read_head
from openblip.core.text import read_json, without_halves
from openblip.data.cards.find import find_split, missing_images
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources.base import Source, refuse_unread
from openblip.data.sources.digest import Digest
from openblip.data.sources.records import read_records

__all__ = ["ComposedSource", "Query", "is_composed", "open_composed", "queries_of"]

_QUERIES = "composed"
_FROM, _TO = rb'"(reference|candidate)"\s*:', rb'"target(_hard)?"\s*:'
_HEAD = re.compile(rb"%s[^{}]*%s|%s[^{}]*%s" % (_FROM, _TO, _TO, _FROM))
_ENDINGS = (".jpg", ".png", ".jpeg")
_MARKS = ".?, "


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked from an image."""

    text: str
    target: str
    """key of the image that is meant"""
    group: tuple[str, ...] = ()
    """keys of CIRR's images that look alike, the reference left out, among which it is ranked too"""


class ComposedSource(Source):
    """The images of a gallery, each with the queries that start from it.

    Attributes:
        without_reference: whether a query's own image is left out of its ranking, as CIRR's is and FashionIQ's is
            not.
    """

    reads = frozenset(("image_root",))

    def __init__(
        self,
        name: str,
        gallery: Mapping[str, Path],
        queries: Mapping[str, Sequence[Query]],
        bad_rows: Iterable[BrokenSample] = (),
        *,
        without_reference: bool,
    ) -> None:
        super().__init__()
        self.name, self.bad_rows, self.without_reference = name, list(bad_rows), without_reference
        self._keys, self._gallery, self._queries = list(gallery), gallery, queries

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        key = self._keys[index]
        queries = tuple(self._queries.get(key, ()))
        texts = tuple(query.text for query in queries)
        return Sample(key, (self._gallery[key],), texts, image_id=key, meta={_QUERIES: queries})

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        for index in span:
            sample = self[index]
            digest.add(sample.key, *(sample.texts if texts else ()))

    def describe(self) -> dict[str, Any]:
        queries = sum(map(len, self._queries.values()))
        return {**super().describe(), "kind": "composed", "num_queries": queries}


def queries_of(meta: Mapping[str, Any]) -> tuple[Query, ...]:
    """The queries that start from an image.

    Raises:
        UserError: its source is no composed one.
    """
    if _QUERIES not in meta:
        raise UserError("this sample is of no gallery for composed retrieval; open its source with open_composed")
    return meta[_QUERIES]


def is_composed(config: SourceConfig) -> bool:
    """Whether a file begins with a row of composed retrieval."""
    path = Path(find_split(config).path).expanduser()
    return path.suffix in (".json", ".jsonl") and path.is_file() and _HEAD.search(read_head(path)) is not None


def open_composed(spec: SourceConfig | str) -> ComposedSource:
    """Open a file of queries; see above.

    Raises:
        UserError: it cannot be read, has no query, one whose images are not in the gallery, or too few images of a
            published dataset; or a setting has no effect.
    """
    given = parse_spec(spec) if isinstance(spec, str) else spec
    config = find_split(given)
    refuse_unread(config, ComposedSource.reads, config.path)
    file = Path(config.path).expanduser()
    roots = tuple(Path(root).expanduser() for root in (config.image_root or str(file.parent)).split("+"))
    listed = _gallery_file(file)
    gallery = {} if listed is None else _gallery(listed, roots)
    queries: dict[str, list[Query]] = defaultdict(list)
    bad: list[BrokenSample] = []
    groups = False
    for label, row in read_records(file, config):
        try:
            reference, query = _query(row, label)
        except BrokenSample as broken:
            bad.append(broken)
            continue
        named = (reference, query.target, *query.group)
        if listed is None:
            gallery |= {name: _path(name, roots) for name in named if name not in gallery}
        elif absent := [name for name in named if name not in gallery]:
            raise UserError(f"{label} names {absent[0]}, which is not in the gallery of {listed}")
        queries[reference].append(query)
        groups = groups or bool(query.group)
    if not queries:
        first = f"; {bad[0]}" if bad else ""
        raise UserError(f"{file} holds no query with a reference, a text and a target{first}")
    alone = groups or listed is None
    source = ComposedSource(given.name or given.path, gallery, queries, bad, without_reference=alone)
    if config is not given:
        missing_images(source, given.path)
    return source


def _query(row: Mapping[str, Any] | BrokenSample, label: str) -> tuple[str, Query]:
    """The reference of a row and what is asked from it.

    Raises:
        BrokenSample: "bad-row", something of it is missing.
    """
    if isinstance(row, BrokenSample):
        raise row
    reference = row.get("reference") or row.get("candidate")
    target = row.get("target_hard") or row.get("target")
    said = row.get("captions") or row.get("caption") or row.get("text")
    texts = [
        without_halves(text).strip()
        for text in (said if isinstance(said, list) else [said])
        if isinstance(text, str)
    ]
    if not (reference and target and texts and all(text.strip(_MARKS) for text in texts)):
        raise BrokenSample("bad-row", label, "a query needs a reference, a text and a target")
    # As usual for FashionIQ, whose two annotators' texts both hold.
    text = texts[0] if len(texts) == 1 else " and ".join(text.strip(_MARKS) for text in texts)
    together = row.get("img_set") or {}
    members = (together.get("members") or []) if isinstance(together, Mapping) else None
    if not isinstance(members, list):
        raise BrokenSample("bad-row", label, 'its "img_set" is no object with a list of "members"')
    return str(reference), Query(text, str(target), tuple(str(one) for one in members if one != reference))


def _gallery_file(file: Path) -> Path | None:
    if not file.name.startswith("cap."):
        return None
    name = "split." + file.name.removeprefix("cap.")
    places = (file.parent / name, file.parent.parent / "image_splits" / name)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"{file} needs the list of its gallery, {places[1]}, which is not there")
    return found


def _gallery(file: Path, roots: Sequence[Path]) -> dict[str, Path]:
    listed = read_json(file)
    if isinstance(listed, dict):
        return {str(name): _path(str(path), roots) for name, path in listed.items()}
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{file} is no gallery: neither a list of names nor an object of paths by name")
    found = {name: _path(name, roots) for name in map(str, listed)}
    if twice := len(listed) - len(found):
        raise UserError(f"{file} names {twice} images twice")
    return found


def _path(name: str, roots: Sequence[Path]) -> Path:
    """Where an image lies; names without an ending get the one that is there."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{name} leads out of the folder of the images")
    names = [name] if relative.suffix.lower() in _ENDINGS else [name + ending for ending in _ENDINGS]
    places = [root / one for root in roots for one in names]
    return next((place for place in places if place.is_file()), places[0])
