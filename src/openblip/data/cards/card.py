"""What the table of data says of a published dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Archive", "Card", "DataTask", "Form", "Submission", "Target"]

DataTask = Literal[
    "captioning", "retrieval", "answering", "nlvr", "dialog", "pretraining", "classification", "composed"
]
Submission = Literal["", "vqa", "aokvqa", "gqa", "coco", "nocaps", "nlvr", "visdial"]


@dataclass(frozen=True)
class Archive:
    """Images of a dataset."""

    folder: str
    """below the dataset's folder, or below `images` in it; "" for the latter itself"""
    url: str
    count: int = 0
    """images in it; 0 where we do not know"""


@dataclass(frozen=True)
class Form:
    """One form in which the annotations of a split are published."""

    file: str
    """Its name, or a pattern ("*.tar"); below the dataset's folder or a folder of annotations in it."""
    url: str
    """Where to get it."""
    by: str = "original"
    """Who publishes it."""
    beside: str = ""
    """A second file that is needed, in the same folder."""
    images: tuple[str, ...] = ()
    """Folders of images that it names, of `Card.archives`."""
    images_of: str = ""
    """The dataset whose images it uses, where they are not those of the card."""
    also_in: str = ""
    """Another dataset in whose folder it may lie too."""
    parts: int = 0
    """Files that the pattern names, all of which are needed; 0 is any number."""
    unsplit: str = ""
    """A file of all splits that does not say which image is in which: it does not take this one's place."""
    image_root: str = ""
    """Where the names of images start, below the folder that holds `images`; several as "a+b"."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `SourceConfig`."""


@dataclass(frozen=True)
class Target:
    """A published figure."""

    measure: str
    model: str
    value: str
    source: str


@dataclass(frozen=True)
class Card:
    """A published dataset."""

    name: str
    """Before the colon: `coco:test`. Also the dataset's folder below the data root."""
    title: str
    task: DataTask
    home: str
    """Address of its page."""
    licence: str
    """Of the annotations, and of the images where that is another; "unknown" where we do not know."""
    splits: Mapping[str, tuple[Form, ...]]
    """Forms of each split, the preferred first."""
    archives: tuple[Archive, ...] = ()
    images_of: str = ""
    """The dataset whose images it uses, found in that one's folder."""
    rule: str = ""
    """Of accuracy, see `openblip.metrics.answers.AccuracyRule`."""
    submission: Submission = ""
    """Format of the evaluation server's files, see `openblip.tasks.submission`."""
    targets: tuple[Target, ...] = ()
    note: str = ""
