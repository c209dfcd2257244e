"""Find a split of a published dataset below the data root: `coco:test` becomes files, images and settings.

find_split(SourceConfig(path="coco:test", root="/data"))
# SourceConfig(path="/data/coco/annotations/coco_karpathy_test.json", image_root="/data/coco/images")
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.core.errors import UserError, nearest
from openblip.core.places import DATA_ROOT, NAMED, local_path
from openblip.data.cards.card import Archive, Card, Form
from openblip.data.cards.table import CARDS

if TYPE_CHECKING:  # the sources open what is named here
    from openblip.data.source_config import SourceConfig
    from openblip.data.sources.base import Source

__all__ = [
    "Found",
    "card_named",
    "data_root",
    "find_form",
    "find_split",
    "missing_images",
    "named_split",
]

_ELSEWHERE = ("world", "hf", "pipe", "file", "timm")
_ANNOTATIONS = ("annotations", "annotation", "questions", "")
_IMAGES = ("images", "")
_PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".part", ".crdownload", ".aria2")
_LOOKED_AT = 64
_MOST_MISSING = 1 / 16
"""of the images looked at: more, and the dataset is taken for half downloaded"""


@dataclass(frozen=True)
class Found:
    """A form of a split, and what of it is there."""

    form: Form
    file: Path | None
    """None where the annotations are not there"""
    images: Path | None
    """the folder that holds all of the form's folders of images; None where one is missing"""
    missing: str = ""
    """as a sentence's end, "" where nothing is missing"""


def named_split(path: str) -> tuple[str, str] | None:
    """The dataset and the split that a spec names, None where it names files.

    Raises:
        UserError: it looks like the name of a dataset, and there is no such dataset, or no split is named.
    """
    named = NAMED.fullmatch(path)
    if path in CARDS and not os.path.exists(path):
        raise UserError(f"{path} is a published dataset; name a split of it, as in {_example(CARDS[path])}")
    if named is None or named["name"] in _ELSEWHERE or os.path.exists(path):
        return None
    return card_named(named["name"]).name, named["split"]


def _example(card: Card) -> str:
    return f"{card.name}:{min(card.splits)}"


def card_named(name: str) -> Card:
    """The card of a dataset.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name not in CARDS:
        raise UserError(f'there is no dataset "{name}"{nearest(name, CARDS)}; openblip datasets lists them')
    return CARDS[name]


def data_root(given: str = "") -> Path:
    """The folder of the datasets: `given`, or that of the variable.

    Raises:
        UserError: neither is set, or there is no such folder.
    """
    root = given or os.environ.get(DATA_ROOT, "")
    if not root:
        raise UserError(
            f"published datasets such as coco:test need the folder that holds them; set --data-root or {DATA_ROOT}"
        )
    folder = Path(local_path(root)).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder of datasets {folder}; set --data-root or {DATA_ROOT} to another")
    return folder


def find_split(config: SourceConfig) -> SourceConfig:
    """The file, the folder of images and the settings of a named split; any other source as it is.

    Raises:
        UserError: there is no such dataset or split, or something of it is missing; says what, and where to get it.
    """
    named = named_split(config.path)
    if named is None:
        return config
    card, split = CARDS[named[0]], named[1]
    if split not in card.splits:
        close = nearest(split, card.splits) if split else f" (known: {', '.join(card.splits)})"
        raise UserError(f'{card.name} has no split "{split}"{close}; name one as {_example(card)}')
    if config.split or config.image_root:
        raise UserError(f"{config.path} names its split and its images; leave out split and image_root")
    root = data_root(config.root)
    found = find_form(card, split, root)
    if found.file is None or found.images is None:
        raise UserError(f"{config.path} is not complete in {root / card.name}: {found.missing}")
    defaults = {setting.name: setting.default for setting in fields(config)}
    settings = {"rule": card.rule if config.questions else "", **found.form.settings}
    if found.form.images:
        settings["image_root"] = "+".join(str(found.images / part) for part in found.form.image_root.split("+"))
    if not (config.questions or config.statements):  # nothing else has answers
        settings.pop("need_answers", None)
    settings = {name: value for name, value in settings.items() if getattr(config, name) == defaults[name]}
    several = found.form.parts or found.file.suffix == ".tar"
    path = str(found.file.parent / Path(found.form.file).name if several else found.file)
    return replace(config, **{"path": path, "name": config.name or config.path, "root": "", **settings})


def find_form(card: Card, split: str, root: Path) -> Found:
    """The first form of a split that is complete; else the first whose annotations are there; else the first."""
    forms = (_look(card, form, root) for form in card.splits[split])
    return min(forms, key=lambda one: (bool(one.missing), one.file is None, not _lies(root, card, one.form)))


def _lies(root: Path, card: Card, form: Form) -> bool:
    """Whether the file without splits that a form speaks of is there."""
    names = (root / card.name / part / form.unsplit for part in _ANNOTATIONS)
    return bool(form.unsplit) and any(name.is_file() for name in names)


def _look(card: Card, form: Form, root: Path) -> Found:
    home = root / card.name
    homes = (home, root / form.also_in) if form.also_in else (home,)
    file = next((file for place in homes for file in _files(place, form)), None)
    base, missing = _image_base(root, card, form)
    if file is None:
        each = [name for name in (form.file, form.beside) if name]
        absent = [name for name in each if not any(any((home / part).glob(name)) for part in _ANNOTATIONS)] or each
        names = " and ".join(absent)
        packed = _half(home, form.file)
        are, them = ("are", "them") if len(absent) > 1 else ("is", "it")
        missing = f"{names} {are} not there{packed}; get {them} from {form.url}"
        if _lies(root, card, form):
            missing = f"{form.unsplit} is there and does not say which images are in which split, and {missing}"
    elif (lacking := form.parts - len(list(file.parent.glob(Path(form.file).name)))) > 0:
        missing = f"{lacking} of the {form.parts} files {form.file} are not there; get them from {form.url}"
        file = None
    return Found(form, file, base, missing)


def _files(home: Path, form: Form) -> Iterator[Path]:
    for folder in (home / part for part in _ANNOTATIONS):
        for file in sorted(folder.glob(form.file)) if folder.is_dir() else ():
            if not form.beside or (folder / form.beside).is_file():
                yield file
                break


def _image_base(root: Path, card: Card, form: Form) -> tuple[Path | None, str]:
    """The folder that holds the folders of images, and what is missing of them."""
    owner = _owner(card, form)
    home = root / owner.name
    if not form.images:
        return home, ""
    bases = [home / part for part in _IMAGES]
    lacking = {base: [name for name in form.images if not _holds_something(base / name)] for base in bases}
    best = min(bases, key=lambda base: len(lacking[base]))
    if not lacking[best]:
        return best, ""
    archives = {archive.folder: archive for archive in owner.archives}
    first = lacking[best][0]
    what = f"there are no images in {best / first}{_half(best, first)}"
    return None, f"{what}; get them from {_url(archives.get(first), owner)}"


def _owner(card: Card, form: Form) -> Card:
    """The dataset of the images."""
    other = form.images_of or card.images_of
    return CARDS[other] if other else card


def _url(archive: Archive | None, card: Card) -> str:
    return archive.url if archive is not None else card.home


def _holds_something(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return next(entries, None) is not None


def _half(folder: Path, name: str) -> str:
    """A hint at a download that is not finished or not unpacked."""
    stem = name.split(".")[0] or folder.name
    for place in (folder, folder.parent):
        for ending in _PACKED:
            for candidate in (f"{stem}{ending}", f"{name}{ending}", f"{stem}.zip{ending}"):
                if (place / candidate).is_file():
                    return f" ({place / candidate} is there: finish the download and unpack it)"
    return ""


def missing_images(source: Source, spec: str) -> None:
    """Refuse a dataset of which many images are not there, from a look at some that are spread evenly.

    A few that are missing are left to the loader, which counts and lists them.

    Raises:
        UserError: says how many of those looked at are missing, which is the first, and where to get them.
    """
    from openblip.data.sample import BrokenSample  # with numpy and Pillow, which a look at the table has no use for

    name, _, split = spec.partition(":")
    card = card_named(name)
    count = min(_LOOKED_AT, len(source))
    folders = {Path(folder).name for form in card.splits[split] for folder in form.images}
    seen, gone = list[Path](), list[Path]()
    for index in (len(source) * place // count for place in range(count)):
        try:
            images = source[index].images
        except BrokenSample:
            continue
        seen += [image for image in images if isinstance(image, Path)]
        gone += [image for image in images if isinstance(image, Path) and not image.exists()][:1]
    if folders and seen and all(folders.isdisjoint(image.parts) for image in seen):
        wanted = " or ".join(sorted(folders))
        raise UserError(
            f"the annotations of {spec} name {seen[0]} and no image in {wanted}: they are of another split; get "
            f"those of {split} from {card.splits[split][0].url}"
        )
    if len(gone) > _MOST_MISSING * count:
        owner = _owner(card, card.splits[split][0])
        archive = next((one for one in owner.archives if one.folder and f"/{one.folder}/" in str(gone[0])), None)
        raise UserError(
            f"{spec} is not complete: {len(gone)} of {count} images looked at are missing, the first {gone[0]}; "
            f"get them from {_url(archive or next(iter(owner.archives), None), owner)}"
        )
