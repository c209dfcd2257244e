"""What flows through `data`: a sample, a batch of samples, and the book of those that were broken.

A source gives `Sample`s (the images still as bytes or paths), the loader decodes them and gives `Batch`es.
Whatever is wrong with one sample is a `BrokenSample` with a short cause; the loader counts it in a `SkipLog`
and continues with a substitute, so one bad image among a million never ends a run and never passes unseen.

Shapes: B samples in a batch, K images in each where a sample has several, T texts (T == B unless every text of a
sample is requested), S side in pixels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from openblip.core.files import append_jsonl
from openblip.core.fingerprint import short_hash

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Batch", "BrokenSample", "ImageLike", "Sample", "SkipLog", "collate", "name_of_image", "stable_id"]

ImageLike = bytes | Path | Image.Image | np.ndarray
"""An image before decoding: an encoded file's bytes, its path, a PIL image, or uint8 [H, W, 3]."""

_NUM_EXAMPLES = 3


@dataclass(slots=True)
class Sample:
    """One image or several, not decoded yet, with the texts that belong to them."""

    key: str
    """Unique in its source; names the sample in messages and in skipped.jsonl."""
    images: tuple[ImageLike, ...]
    """One, or as many as `SourceConfig.num_images` says, in the order that the texts speak of."""
    texts: tuple[str, ...] = ()
    image_id: str = ""
    """Equal for samples that show the same images (their texts are all true of them); "" means `key`."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Whatever else the source knows: other columns, the scene, the split."""
    frames: int = 0
    """How many frames of its video are read; 0 for images. With frames an image counts as a video of one frame."""

    @property
    def image(self) -> ImageLike:
        """The image of a sample that has one.

        Raises:
            BrokenSample: "several-images".
        """
        if len(self.images) != 1:
            raise BrokenSample("several-images", self.key, f"it has {len(self.images)} images where one is read")
        return self.images[0]


class BrokenSample(Exception):
    """A sample that cannot be used.

    Attributes:
        cause: short slug, one of "missing", "empty", "truncated", "not-an-image", "too-large", "unreadable"
            (the image), "no-text", "bad-text" (its texts), "bad-row" (its line in a captions file),
            "duplicate-key" (in tars), "several-images" (where one is read).
        key: the sample's key.
        detail: one sentence for a person.
        num_texts: of a video that cannot be read; a measure may count them as missed.
    """

    num_texts = 0

    def __init__(self, cause: str, key: str = "", detail: str = "") -> None:
        detail = detail.replace("\n", "\\n")  # as names in it may hold
        super().__init__(cause, key, detail)
        self.cause, self.key, self.detail = cause, key, detail

    def __str__(self) -> str:
        return ": ".join(part for part in (self.cause, self.key, self.detail) if part)


class SkipLog:
    """Counts broken samples by cause each time they are met, and lists each once in a file.

    Several processes may write to one file, and a resumed run continues in it: what already stands there is not
    listed again.

    Args:
        path: a JSON-lines file, usually `skipped.jsonl` in the run's folder; None keeps counts only.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[BrokenSample]] = {}
        self._listed: set[int] = set()
        self._read_to = 0  # bytes of the file that `_listed` knows

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, broken: BrokenSample, **where: Any) -> None:
        """Count one broken sample; `where` (epoch, source, ...) goes into its line of the file."""
        self.counts[broken.cause] += 1
        examples = self.examples.setdefault(broken.cause, [])
        if len(examples) < _NUM_EXAMPLES:
            examples.append(broken)
        if self.path is None:
            return
        record = {"key": broken.key, "cause": broken.cause, "detail": broken.detail, **where}
        self._catch_up(self.path)
        if _identity(record) not in self._listed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.path, record)

    def _catch_up(self, path: Path) -> None:
        """Take note of what this and other processes have listed since the last time."""
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written, or cut by a kill
                self._read_to += len(line)
                with suppress(ValueError, AttributeError):
                    self._listed.add(_identity(json.loads(line)))

    def summary(self) -> str:
        """Return "3 broken samples skipped (2 missing, 1 truncated)", or "" when there were none."""
        if not self.total:
            return ""
        causes = ", ".join(f"{count} {cause}" for cause, count in self.counts.most_common())
        return f"{self.total} broken sample{'s' if self.total > 1 else ''} skipped ({causes})"

    def state_dict(self) -> dict[str, int]:
        return dict(self.counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.counts = Counter(state)


def _identity(record: dict[str, Any]) -> int:
    return stable_id("\n".join(str(record.get(name, "")) for name in ("source", "key", "cause")))


@dataclass(slots=True)
class Batch:
    """Images and texts of equal rank in the stream; row i of every per-image field is the same sample."""

    images: Tensor
    """uint8 [B, 3, S, S], or [B, K, 3, S, S] of samples with several images or frames each; `transforms.normalize`
    makes floats of it on the device that trains."""
    texts: list[str]
    """One for each image, or all texts of all images (text_mode "all"), or none (text_mode "none")."""
    image_ids: Tensor
    """int64 [B]: `stable_id` of the sample's image id; equal ids show the same images."""
    keys: list[str]
    meta: list[dict[str, Any]]
    image_index: Tensor
    """int64 [T]: the row in `images` that each text belongs to."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def texts_of_images(self) -> list[list[str]]:
        """The texts of each of the B images."""
        texts: list[list[str]] = [[] for _ in self.keys]
        for row, text in zip(self.image_index.tolist(), self.texts, strict=True):
            texts[row].append(text)
        return texts

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """Return the batch with its tensors on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            image_ids=self.image_ids.to(device, non_blocking=non_blocking),
            image_index=self.image_index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """Return the batch with its images in page-locked memory, for copies that overlap with compute."""
        return replace(self, images=self.images.pin_memory())


def stable_id(name: str) -> int:
    """Return a 63-bit hash of `name` that is the same in every process and on every machine."""
    return int(short_hash(name.encode("utf-8", "surrogatepass")), 16) >> 1


def name_of_image(sample: Sample, source: str | None = None) -> str:
    """What `stable_id` of an image is made from.

    Args:
        source: its name where data have several sources: two that both count from 0 must not share image ids.
    """
    name = sample.image_id or sample.key
    return name if source is None else f"{source}/{name}"


def collate(rows: Iterable[tuple[Sample, Tensor, tuple[str, ...]]]) -> Batch:
    """Stack (sample, its image uint8 [3, S, S] or images [K, 3, S, S], chosen texts) into a `Batch`."""
    import torch  # here, so that a source is opened, and refused, without it

    samples, images, texts = zip(*rows, strict=True)
    owners = [row for row, chosen in enumerate(texts) for _ in chosen]
    ids = [stable_id(name_of_image(sample)) for sample in samples]
    return Batch(
        images=torch.stack(list(images)),
        texts=[text for chosen in texts for text in chosen],
        image_ids=torch.tensor(ids, dtype=torch.int64),
        keys=[sample.key for sample in samples],
        meta=[sample.meta for sample in samples],
        image_index=torch.tensor(owners, dtype=torch.int64),
    )
