"""Features of the frozen tower on disk: computed once for every image, read in training in place of images.

    cache_features([open_source("photos/")], tower, "features/")       # resumable, shard by shard
    cache = FeatureCache.open(["features/"], fingerprint_of(tower))     # refuses those of another tower
    cache.source(open_source("photos/"))                                # a source whose samples name their features

A folder holds cache.json, keys-NNNNN.json and features-NNNNN.safetensors ([n, N, D], in the tower's dtype), and
inputs.json: the fingerprint of the images of each shard. A shard whose images have changed is made anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.files import atomic_path, write_json, write_tensors
from openblip.core.fingerprint import fingerprint
from openblip.core.interrupt import Stopped, StopSignals
from openblip.core.text import read_json
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources.base import Source
from openblip.data.sources.digest import Digest
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.models.tower import FrozenTower

__all__ = ["FeatureCache", "NoPixels", "cache_features", "count_features", "fingerprint_of"]

FORMAT = "openblip-features"
_ROW = "feature_row"


def fingerprint_of(tower: FrozenTower) -> str:
    """Digest of the tower's weights: features of one tower mean nothing to a model over another."""
    return fingerprint(tower.encoder.named_parameters())


@torch.no_grad()
def cache_features(
    sources: Sequence[Source],
    tower: FrozenTower,
    folder: Path | str,
    *,
    batch_size: int = 32,
    shard_size: int = 1024,
    num_workers: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, int]]:
    """Compute what is not there yet, or has changed; yields (images done, of how many) after each shard made.

    Images are resized whole, nothing random. Those that cannot be read are left out and listed in skipped.jsonl.

    Raises:
        UserError: the folder holds features of another tower, two images have one key, or none can be read.
        Stopped: SIGINT or SIGTERM came; what is computed is kept, in a shard that is not whole as well.
    """
    folder = Path(folder)
    total = sum(len(source) for source in sources)
    described = {
        "format": FORMAT,
        "vision": tower.config.source,
        "drop_layers": tower.config.drop_layers,
        "fingerprint": fingerprint_of(tower),
        "pixels": list(tower.pixels),
        "width": tower.width,
        "dtype": str(tower.dtype).removeprefix("torch."),
        "sources": [[source.name, len(source)] for source in sources],
        "shard_size": shard_size,
    }
    known = _read(folder / "cache.json")
    for name in described if known is not None else ():
        if name != "sources" and known.get(name) != described[name]:
            raise UserError(
                f"{folder} holds other features: its {name} is {known.get(name)}, not {described[name]}; "
                "choose a new folder"
            )
    bounds = [(first, min(total, first + shard_size)) for first in range(0, total, shard_size)]
    inputs = [_images_of(sources, *bound) for bound in bounds]
    made = _keep_unchanged(folder, inputs, trusted=known is not None and known["sources"] == described["sources"])
    if known != described:
        write_json(folder / "cache.json", described)
    tower.to(device)
    seen = {key for file in folder.glob("keys-*.json") for key in _read(file)}
    for shard, (first, last) in enumerate(bounds):
        if str(shard) in made:
            continue
        begun = _Begun(folder / f".begun-{shard:05d}.safetensors")
        loader = Loader(
            [_Slice(source, *span) for source, span in _spans(sources, first, last)],
            evaluation_transform(tower.pixels),
            batch_size,
            shuffle=False,
            drop_last=False,
            text_mode="none",
            num_workers=num_workers,
            skip_log=folder / "skipped.jsonl",
            leave_out=True,
        )
        begun.read(loader, inputs[shard])
        keys, parts = begun.keys, begun.parts
        with StopSignals() as signals, closing(loader):
            for batch in loader:
                pixels = tower.normalize(batch.images.to(device))
                parts.append(tower(pixels).cpu())
                keys += batch.keys
                if signals.received:
                    begun.write(loader, inputs[shard])
                    place = f"{first + len(keys)} of {total} images"
                    raise Stopped(f"stopped after {place}; their features are in {folder}", signals.received)
        rows = _first_of_each(keys)
        keys = [keys[row] for row in rows]
        if twice := seen.intersection(keys):
            raise UserError(f'two images have the key "{min(twice)}"; cache each source in a folder of its own')
        seen.update(keys)
        if keys:
            with atomic_path(folder / f"features-{shard:05d}.safetensors") as temporary:
                write_tensors(temporary, {"features": torch.cat(parts)[rows].contiguous()})
        made[str(shard)] = inputs[shard]
        write_json(folder / "inputs.json", made)
        write_json(folder / f"keys-{shard:05d}.json", keys, indent=None)
        begun.file.unlink(missing_ok=True)
        yield last, total
    if not seen:
        names = " and ".join(source.name for source in sources)
        raise UserError(f"no image of {names} can be read; {folder / 'skipped.jsonl'} says what is wrong with each")


def count_features(folder: Path | str) -> int:
    """How many images have features in a folder."""
    return sum(len(_read(file)) for file in Path(folder).glob("keys-*.json"))


def _images_of(sources: Sequence[Source], first: int, last: int) -> str:
    """Fingerprint of the images of samples `first` to `last` of all; their texts do not matter to features."""
    digest = Digest()
    for source, span in _spans(sources, first, last):
        digest.add(source.fingerprint(range(*span), texts=False))
    return digest.value()


def _keep_unchanged(folder: Path, inputs: Sequence[str], *, trusted: bool) -> dict[str, str]:
    """Remove the shards whose images have changed or are gone; return the inputs of the others by shard.

    Args:
        trusted: a folder of an earlier version, which does not say what it was made of, is of these images.
    """
    noted = _read(folder / "inputs.json")
    kept = {}
    for keys in sorted(folder.glob("keys-*.json")):
        shard = int(keys.stem.removeprefix("keys-"))
        same = trusted if noted is None else shard < len(inputs) and noted.get(str(shard)) == inputs[shard]
        if same:
            kept[str(shard)] = inputs[shard]
            continue
        for name in (keys.name, f"features-{shard:05d}.safetensors"):
            (folder / name).unlink(missing_ok=True)
    return kept


@dataclass
class _Begun:
    """A shard that is not whole: what is computed of it, and how far its loader is, in one file."""

    file: Path
    keys: list[str] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)
    """features [n, N, D]"""

    def read(self, loader: Loader, images: str) -> None:
        """Resume where the file was written; with another batch size or other images, from the shard's
        beginning."""
        if not self.file.is_file():
            return
        found = load_file(self.file)
        state = json.loads(found["state"].numpy().tobytes())
        if (state["loader"]["global_batch"], state.get("input")) == (loader.state_dict()["global_batch"], images):
            loader.load_state_dict(state["loader"])
            self.keys, self.parts = state["keys"], [found["features"]]

    def write(self, loader: Loader, images: str) -> None:
        """Keep what is computed."""
        place = loader.state_dict()
        del place["data"]  # texts do not matter
        state = json.dumps({"keys": self.keys, "loader": place, "input": images}).encode()
        plain = torch.frombuffer(bytearray(state), dtype=torch.uint8)
        with atomic_path(self.file) as temporary:
            write_tensors(temporary, {"features": torch.cat(self.parts), "state": plain})


def _first_of_each(keys: Sequence[str]) -> list[int]:
    first: dict[str, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    return list(first.values())


def _spans(sources: Sequence[Source], first: int, last: int) -> Iterator[tuple[Source, tuple[int, int]]]:
    """What of each source lies between samples `first` and `last` of all."""
    start = 0
    for source in sources:
        low, high = max(first - start, 0), min(last - start, len(source))
        if low < high:
            yield source, (low, high)
        start += len(source)


class _Slice(Source):
    """Samples `first` to `last` of another source."""

    def __init__(self, source: Source, first: int, last: int) -> None:
        super().__init__()
        self.name = source.name
        self._source, self._first, self._last = source, first, last

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: int) -> Sample:
        return self._source[self._first + index]

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        self._source.digest(digest, range(self._first + span.start, self._first + span.stop), texts=texts)


def _read(file: Path) -> Any:
    if not file.is_file():
        return None
    try:
        return read_json(file)
    except UserError as error:
        raise UserError(f"{error}; remove the folder and cache the features again") from error


@dataclass
class FeatureCache:
    """Features by the keys of their samples."""

    rows: dict[str, tuple[Path, int]]
    """for each key the file and the row in it"""
    shape: tuple[int, int]
    """of one image's features, [N, D]"""

    @classmethod
    def open(cls, folders: Sequence[Path | str], wanted: str) -> FeatureCache:
        """Read the keys of `folders`.

        Args:
            wanted: `fingerprint_of` the tower that training uses.

        Raises:
            UserError: a folder holds no features, those of another tower, or a key stands in two of them.
        """
        rows: dict[str, tuple[Path, int]] = {}
        for folder in map(Path, folders):
            described = _read(folder / "cache.json")
            if described is None or described.get("format") != FORMAT:
                raise UserError(f"{folder} holds no features; openblip cache-features makes them")
            if described["fingerprint"] != wanted:
                raise UserError(
                    f"the features in {folder} are those of another vision tower ({described['vision']}, "
                    f"fingerprint {described['fingerprint'][:8]}, this model's is {wanted[:8]}); cache them again"
                )
            for file in sorted(folder.glob("keys-*.json")):
                features = file.with_name(file.name.replace("keys", "features")).with_suffix(".safetensors")
                for row, key in enumerate(_read(file)):
                    if key in rows:
                        raise UserError(f'the key "{key}" stands twice in the features; train on each by itself')
                    rows[key] = features, row
        if not rows:
            raise UserError(f"{folders[0]} holds no features yet")
        first, _ = next(iter(rows.values()))
        with safe_open(first, "pt") as opened:
            _, tokens, width = opened.get_slice("features").get_shape()
        return cls(rows, (tokens, width))

    def source(self, source: Source) -> Source:
        """`source` with samples that name their features and have no images."""
        return _CachedSource(source, self)

    def read(self, meta: Sequence[dict[str, Any]]) -> Tensor:
        """Features [B, N, D] of the samples with these `meta`."""
        return torch.cat([self._row(*self.rows[m[_ROW]]) for m in meta])

    def _row(self, file: Path, row: int) -> Tensor:
        with safe_open(file, "pt") as opened:  # the file is mapped, not read
            return opened.get_slice("features")[row : row + 1]


class _CachedSource(Source):
    """Samples of another source; a tiny grey image stands for each that has features."""

    def __init__(self, source: Source, cache: FeatureCache) -> None:
        super().__init__()
        self.name, self.blocks, self.window = source.name, source.blocks, source.window
        self.bad_rows = source.bad_rows
        self._source, self._keys = source, cache.rows.keys()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        key = sample.key if sample.key in self._keys else sample.key.rpartition("#")[0]  # one of several captions
        if key not in self._keys:
            raise BrokenSample("missing", sample.key, "there are no features of it on disk")
        return replace(sample, images=(np.zeros((8, 8, 3), np.uint8),), meta={**sample.meta, _ROW: key})

    def text_counts(self) -> np.ndarray:
        return self._source.text_counts()

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        before, digest.sizes = digest.sizes, False
        self._source.digest(digest, span, texts=texts)
        digest.sizes = before

    def describe(self) -> dict[str, Any]:
        return self._source.describe()


class NoPixels:
    """The transform of images that are not looked at."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """One pixel."""
        return torch.zeros(3, 1, 1, dtype=torch.uint8)
