"""Where samples come from: the settings of a source, read without opening it.

parse_spec("captions.jsonl?text_column=alt&weight=2")    # SourceConfig(path="captions.jsonl", ...)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qsl

from openblip.core.config import override
from openblip.core.errors import UserError, nearest
from openblip.core.places import QUERY

__all__ = ["SourceConfig", "parse_spec"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where samples come from and how they are read; docs/data.md shows each format."""

    path: str
    """A folder, a captions file, tars (folder, glob, {000..099}.tar), "hf:NAME[:SPLIT]", "world:SPLIT", or a split
    of a published dataset, "coco:test" (see data/cards)."""
    root: str = ""
    """The folder of published datasets; default: that of the variable OPENBLIP_DATA."""
    name: str = ""
    """Keeps image ids of several sources apart (default: the path); sources of one name share their ids."""
    weight: float | None = None
    """Share of the samples in a mix, relative to the other weights; None for all: by size."""
    epoch_share: float = 1.0
    """Part of its samples that a training epoch takes where no source has a weight; the next epoch goes on from
    there."""
    split: str = ""
    """Read only rows whose `split` column says this (tables, COCO-Karpathy), or this split (hf:)."""
    pairs: bool = False
    """Every (image, caption) is a sample of its own; else all captions of an image make one sample."""
    image_root: str = ""
    """Folder that relative image paths start from, or several as "a+b"; default: that of the captions file."""
    absolute_paths: bool = False
    """Accept absolute image paths outside `image_root` in a captions file that you trust."""
    image_column: str = ""
    """Column of the image's path or bytes, in tars its ending; guessed from the usual names when empty. Of samples
    with several images one column for each, "left,right", or one that holds lists."""
    image_name: str = ""
    """The path of a row's image from other columns, "val2017/{image_id:012}.jpg"; rows without these name it.
    "{image:name}" is the file's name in that column without its folder."""
    num_images: int = 1
    """Images of each sample: 2 for the pairs of NLVR2. Only tables and hf: have samples with several."""
    frames: int = 0
    """Frames of each video, evenly spread over it; an image counts as a video of one frame. 0: 8 where the source
    has videos and no images."""
    text_column: str = ""
    """Column, JSON field or file ending of the captions; guessed from the usual names when empty."""
    id_column: str = ""
    """Column that is equal for rows of one image; guessed, else the image's path. See identity.py."""
    classes: str = ""
    """Of a folder whose subfolders are classes: a file of their names (below it, or "../names.txt"), or "folder" to
    take those of the folders; see classes.py."""
    need_texts: bool = True
    """False: a captions file without captions will do, as when captions are to be written."""
    meta_columns: tuple[str, ...] = ()
    """Further columns to keep in `Sample.meta`."""
    questions: bool = False
    """The texts are questions with answers, see `questions.open_questions`; `text_column` names theirs."""
    statements: bool = False
    """The texts are statements, true or false, see `statements.open_statements`; `text_column` names theirs."""
    answer_column: str = ""
    """Column of the answers to a question, or of a statement's label; guessed from the usual names when empty."""
    need_answers: bool = True
    """False: questions without answers, or statements without labels, will do, as those of a test split that are
    predicted."""
    answer_weight: float | None = None
    """In training, of the answers to these questions (None: 1): BLIP gives those of Visual Genome 0.2."""
    rule: str = ""
    """Of accuracy of answers to these questions, see `metrics.answers`; default: that of the evaluation."""
    max_questions: int = 0
    """Most questions about an image in one sample; an image with more makes several. 0 takes all."""

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("a data source needs a path: a folder, captions file, tars, hf:NAME or world:SPLIT")
        if not 0 < self.epoch_share <= 1:
            told = f"above 0 and at most 1, not {self.epoch_share:g}"
            raise UserError(f"the epoch_share of source {self.path} must be {told}")
        if self.weight is not None and not self.weight > 0:
            raise UserError(f"the weight of source {self.path} must be above 0, not {self.weight}")
        if self.answer_weight is not None and not 0 < self.answer_weight < math.inf:
            raise UserError(f"answer_weight of source {self.path} must be above 0, not {self.answer_weight}")
        if self.max_questions < 0:
            raise UserError(f"max_questions of source {self.path} cannot be negative, and is {self.max_questions}")
        if self.num_images < 1:
            raise UserError(f"num_images of source {self.path} must be at least 1, not {self.num_images}")
        if self.frames < 0 or (self.frames and self.num_images > 1):
            number = f"not {self.frames}" if self.frames < 0 else "and of samples with one image"
            raise UserError(f"frames of source {self.path} must be 1 or more, {number}")


def parse_spec(spec: str) -> SourceConfig:
    """Turn "PATH?setting=value&..." into a `SourceConfig`; what follows "world:" keeps its own settings.

    Raises:
        UserError: an unknown setting, or a value of the wrong kind.
    """
    match = QUERY.match(spec)
    if not match or Path(spec).exists():
        return SourceConfig(path=spec)
    names = {field.name for field in fields(SourceConfig)} - {"path"}
    settings, rest = [], []
    query = match["query"].replace("+", "%2B")  # image_root=a+b names two folders
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in names:
            settings.append(f"{name}={text}")
        elif spec.startswith("world:"):
            rest.append(f"{name}={text}")
        else:
            raise UserError(f'{spec}: unknown setting "{name}"{nearest(name, names)}')
    path = match["path"] + ("?" + "&".join(rest) if rest else "")
    return override(SourceConfig(path=path), settings)
