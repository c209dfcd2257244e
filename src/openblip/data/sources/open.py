"""Find out what a path holds and open it: `open_source("captions.jsonl")`, `open_source("tars/{000..099}.tar")`.

A spec may carry settings after a question mark, as in "captions.jsonl?text_column=web_text&split=train".
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openblip.core.errors import UserError
from openblip.core.kinds import looks_like, read_head
from openblip.core.places import DATA_BY_CONTENT, TABLES, local_path, missing_data, no_data
from openblip.data.cards.find import find_split, missing_images
from openblip.data.formats import IMAGE_SUFFIXES
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources.base import NoSamples, PairsSource, Source, refuse_unread
from openblip.data.sources.classes import ClassFolderSource
from openblip.data.sources.folder import FolderSource, with_texts
from openblip.data.sources.hub import HubSource
from openblip.data.sources.parquet import open_parquet
from openblip.data.sources.table import open_records
from openblip.data.sources.tars import TarSource
from openblip.data.walk import is_hidden

__all__ = ["SourceParts", "names_files_in", "open_source", "source_parts"]

_TEXT_TABLES = (".txt", ".token")
"""Endings under which a table is read when it is named, or called captions.txt in its folder."""
_MOST_GAPS = 1000
_CAPTION_FILES = ("captions", "metadata", "annotations", "dataset", "data")
_WILD = "*?["
_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")


def open_source(spec: SourceConfig | str) -> Source:
    """Open whatever `spec` names; see docs/data.md for the formats.

    Raises:
        UserError: nothing is there, its kind cannot be recognized, it is empty, or a column is missing.
    """
    given = parse_spec(spec) if isinstance(spec, str) else spec
    config = find_split(given)
    source = _open(config)
    if not len(source):
        bad = f"; {len(source.bad_rows)} rows cannot be read, first {source.bad_rows[0]}" if source.bad_rows else ""
        raise NoSamples(f"{config.path} holds no samples{bad}", source.bad_rows)
    refuse_unread(config, source.reads, config.path)
    source.name = config.name or config.path
    if config is not given:
        missing_images(source, given.path)
    return PairsSource(source) if config.pairs else source


@dataclass(frozen=True)
class SourceParts:
    """A source in pieces that can be opened apart."""

    parts: list[SourceConfig]
    missing: list[str] = field(default_factory=list)
    """files that a range names, or that numbered names leave out"""


def source_parts(spec: SourceConfig | str) -> SourceParts:
    """Each tar or parquet file of `spec` as a source of its own, so that a collection is never indexed as a whole.

    What is not many such files is one part; samples have the same keys as in the whole.

    Raises:
        UserError: a setting of `spec` is wrong.
    """
    config = find_split(parse_spec(spec) if isinstance(spec, str) else spec)
    place = local_path(config.path)
    if place.startswith(("world:", "hf:")) or "://" in place:
        return SourceParts([config])
    path = Path(place).expanduser()
    files: list[Path] = []
    missing: list[str] = []
    if path.is_dir():
        files = _packed_files(path)
    elif not path.is_file():
        files, _ = _expand(str(path))
        named = (name for name in _braces(str(path)) if not any(letter in name for letter in _WILD))
        missing = [name for name in named if not Path(name).exists()]
    kinds = {file.suffix.lower() for file in files}
    if len(files) < 2 or kinds not in ({".tar"}, {".parquet"}):
        return SourceParts([config], missing)
    name = config.name or config.path
    parts = [dataclasses.replace(config, path=str(file), name=name) for file in files]
    return SourceParts(parts, missing or _gaps(files))


def _gaps(files: Sequence[Path]) -> list[str]:
    """Names that are left out where files are numbered."""
    numbered = {int(file.stem): file for file in files if file.stem.isdecimal()}
    if len(numbered) < len(files) or len(numbered) < 2:
        return []
    width = len(files[0].stem)
    left_out = (n for n in range(min(numbered), max(numbered)) if n not in numbered)
    return [f"{n:0{width}d}{files[0].suffix}" for n in itertools.islice(left_out, _MOST_GAPS)]


def _open(config: SourceConfig) -> Source:
    spec = local_path(config.path)
    if spec.startswith("world:"):
        from openblip.data.world.dataset import open_world

        return open_world(spec)
    if spec.startswith("hf:"):
        return HubSource(spec.removeprefix("hf:"), config)
    if "://" in spec or spec.startswith("pipe:"):
        raise UserError(f"{spec} is not on this machine; copy or mount it and give its path")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _open_folder(path, config)
    if path.is_file():
        return _open_files([path], config)
    paths, num_missing = _expand(str(path))
    if not paths:
        raise UserError(missing_data(spec))
    return _open_files(paths, config, num_missing=num_missing)


def _open_files(paths: list[Path], config: SourceConfig, *, num_missing: int = 0) -> Source:
    kinds = {path.suffix.lower() for path in paths}
    if len(kinds) > 1:
        raise UserError(f"{config.path} names files of several kinds ({', '.join(sorted(kinds))}); give one kind")
    kind = kinds.pop()
    found = looks_like(read_head(paths[0])) or ""
    if kind not in (".tar", ".parquet"):
        kind = DATA_BY_CONTENT.get(found, kind)  # whatever the file is called
    if kind == ".tar":
        return TarSource(paths, config, num_missing=num_missing)
    if kind == ".parquet":
        return open_parquet(paths, config)
    if kind in (*TABLES, *_TEXT_TABLES) and len(paths) == 1:
        return open_records(paths[0], config)
    if kind == ".json" and len({re.sub(r"\d+", "", path.name) for path in paths}) == 1:  # numbered parts of one
        return open_records(paths[0], config, *sorted(paths[1:], key=_number))
    if kind in TABLES:
        raise UserError(f"{config.path} names {len(paths)} captions files; give each as a source of its own")
    raise UserError(no_data(paths[0], found))


def _number(path: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", path.name)))


def _open_folder(folder: Path, config: SourceConfig) -> Source:
    if config.classes:
        return ClassFolderSource(folder, config)
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return HubSource(str(folder), config)
    if packed := _packed_files(folder):
        return _open_files(packed, config)
    entries = _entries(folder)
    tables = [path for path in entries if path.suffix.lower() in TABLES]
    named = [path for path in tables if path.stem.lower() in _CAPTION_FILES]
    if not tables and _is_table_of_images(folder / "captions.txt"):  # Flickr8k's
        return _open_files([folder / "captions.txt"], config)
    if len(named) == 1:
        return _open_files(named, config)
    if with_texts([path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES], entries):
        return FolderSource(folder, config)
    tables = [path for path in tables if path.suffix.lower() != ".json" or path in named]
    if len(tables) == 1:
        return _open_files(tables, config)
    if tables:
        names = ", ".join(path.name for path in tables[:5])
        raise UserError(f"{folder} holds several captions files ({names}); give one of them as the path")
    return FolderSource(folder, config)


def _is_table_of_images(path: Path) -> bool:
    """Whether a text begins with column names, one of them of images."""
    first = read_head(path).split(b"\n")[0].strip().lower() if path.is_file() else b""
    return re.match(rb"^\W*image\w*\s*[,;|\t]", first) is not None


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not is_hidden(path.name))


def _packed_files(folder: Path) -> list[Path]:
    """The tars of a folder, or its parquet files where there are no other tables; else nothing."""
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return []
    entries = _entries(folder)
    tars = [path for path in entries if path.suffix.lower() == ".tar"]
    if tars:  # img2dataset writes .parquet and .json beside each; the tars have it all
        return tars
    tables = [path for path in entries if path.suffix.lower() in TABLES]
    return tables if all(path.suffix.lower() == ".parquet" for path in tables) else []


def _expand(pattern: str) -> tuple[list[Path], int]:
    """Return the files that a brace or glob pattern names, and how many a range names that are not there."""
    found: list[Path] = []
    num_missing = 0
    for name in _braces(pattern):
        if any(letter in name for letter in _WILD):
            found += [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        elif Path(name).is_file():
            found.append(Path(name))
        else:
            num_missing += 1
    return list(dict.fromkeys(found)), num_missing


def names_files_in(pattern: str, folder: Path) -> bool:
    """Whether a brace or glob pattern names files in a folder or below, were there any; of other specs False."""
    place = local_path(pattern)
    if place.startswith(("world:", "hf:")) or not any(letter in place for letter in (*_WILD, "{")):
        return False
    inside = folder.resolve().parts
    for parent, rest in {(path.parent, path.name == "**") for path in map(Path, _braces(place))}:
        fixed = tuple(itertools.takewhile(lambda part: not any(c in part for c in _WILD), parent.parts))
        parts = (*Path(*fixed).expanduser().resolve().parts, *parent.parts[len(fixed) :], "**" if rest else "*")
        if _may_hold(parts, inside):
            return True
    return False


def _may_hold(pattern: Sequence[str], folder: Sequence[str]) -> bool:
    """Whether the pattern of a file, part by part, fits something in the folder."""
    if not pattern:
        return False
    if not folder or pattern[0] == "**":
        return True
    return fnmatch.fnmatchcase(folder[0], pattern[0]) and _may_hold(pattern[1:], folder[1:])


def _braces(pattern: str) -> Iterator[str]:
    """Expand {a,b} and {000..123}, leading zeros kept."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            choices.append([part])
        elif numbers := _RANGE.match(part):
            first, last = numbers[1], numbers[2]
            choices.append([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(","))
    return map("".join, itertools.product(*choices))
