"""Images to use a model on: found in files, folders, globs, tars or a list, and decoded beside the model.

    for batch in decoded(find_image_inputs(["photos/", "shard.tar"]), transform, batch_size=16):
        batch.names, batch.pixels        # uint8 [B, 3, H, W], ready for the model
        batch.broken                     # what could not be read, with the reason

Decoding runs in threads that stay a few batches ahead, so that the model waits for no file.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.places import check_image, local_path
from openblip.data.formats import IMAGE_SUFFIXES, ending_of
from openblip.data.images import MAX_PIXELS, decode_image
from openblip.data.sample import BrokenSample, ImageLike
from openblip.data.sources.tars import Member, read_members
from openblip.data.transforms import ImageTransform
from openblip.data.walk import LeftOut, is_hidden, walk

__all__ = [
    "ImageBatch",
    "ImageInput",
    "ImageInputs",
    "TarMember",
    "as_image_inputs",
    "decoded",
    "find_image_inputs",
    "find_images",
    "unusable",
]

STDIN = "-"
_BATCHES_AHEAD = 2
_NO_RANDOM = np.random.default_rng(0)
"""the transforms that images to use go through draw nothing"""


@dataclass(frozen=True, slots=True)
class TarMember:
    """Bytes in a tar, read when they are needed."""

    tar: Path
    member: Member

    def read(self) -> bytes:
        """The bytes of the file."""
        with open(self.tar, "rb") as file:
            file.seek(self.member.offset)
            return file.read(self.member.size)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image by name, not decoded yet."""

    name: str
    """its path; inside a tar TAR/MEMBER; "#3" for the fourth of images without names"""
    image: ImageLike | Tensor | TarMember

    def decode(self, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The image, upright and RGB; a large JPEG smaller, down to a short side of `min_side`.

        Raises:
            BrokenSample: why it cannot be read, or has more than `max_pixels`, `name` as its key.
        """
        try:
            source = self.image.read() if isinstance(self.image, TarMember) else self.image
            if isinstance(source, Tensor):
                source = _array(source)
            return decode_image(source, key=self.name, min_side=min_side, max_pixels=max_pixels)
        except BrokenSample as broken:
            raise BrokenSample(broken.cause, self.name, broken.detail) from broken
        except OSError as error:
            raise BrokenSample("unreadable", self.name, str(error)) from error


@dataclass
class ImageBatch:
    """Decoded images that follow one another."""

    names: list[str] = field(default_factory=list)
    pixels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    """uint8 [B, 3, H, W], of those that could be read"""
    broken: list[BrokenSample] = field(default_factory=list)
    """those among them that could not, named by `key`"""

    def __len__(self) -> int:
        return len(self.names)


ImageInputs = (
    ImageLike | Tensor | str | BinaryIO | ImageInput | Sequence[ImageLike | Tensor | str | BinaryIO | ImageInput]
)
"""One image or several: paths, file:// URLs, open files, PIL images, uint8 arrays [H, W, 3], tensors [3, H, W]
(uint8, or floats from 0 to 1), encoded bytes. An array or a tensor with one dimension more is several."""


def as_image_inputs(images: ImageInputs) -> list[ImageInput]:
    """Whatever a person hands over, as a list of named images.

    Raises:
        UserError: a file is open as text, or a string is a web address.
    """
    one = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | ImageInput)
    one = one or hasattr(images, "read")
    if isinstance(images, np.ndarray | Tensor):
        one = images.ndim < 4
        one = one and images.dtype.kind not in "OUS" if isinstance(images, np.ndarray) else one  # of a table
    if not one and not isinstance(images, Iterable):
        raise UserError(f"{_type_of(images)} is no image; {_GIVE}")
    many: list[Any] = [images] if one else list(cast(Sequence[Any], images))
    return [_named(image, position) for position, image in enumerate(many)]


def _named(image: Any, position: int) -> ImageInput:
    if isinstance(image, ImageInput):
        return image
    if isinstance(image, str | os.PathLike):
        place = local_path(os.fsdecode(image))
        if "://" in place and not Path(place).exists():
            check_image(place)
        return ImageInput(place, Path(place))
    name = f"#{position}"
    if isinstance(image, bytearray | memoryview):
        return ImageInput(name, bytes(image))
    if hasattr(image, "read"):
        own = getattr(image, "name", None)
        return ImageInput(own if isinstance(own, str) and own else name, _content(image))
    if not isinstance(image, bytes | Image.Image | np.ndarray | Tensor):
        raise UserError(f"image {name} is {_type_of(image)}; {_GIVE}")
    return ImageInput(name, image)


_GIVE = "give paths, open files, PIL images, uint8 arrays, tensors or encoded bytes, one or a list of them"


def _type_of(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _content(file: Any) -> bytes:
    """All bytes of an open file, from its beginning where it can go back there, as Pillow reads it."""
    with suppress(AttributeError, OSError):  # a stream is read on from where it is
        file.seek(0)
    try:
        data = file.read()
    except UnicodeDecodeError as error:
        raise UserError(f'{_TEXT_FILE}: open({getattr(file, "name", "...")!r}, "rb")') from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f'{_TEXT_FILE}: open({getattr(file, "name", "...")!r}, "rb")')
    return bytes(data)


_TEXT_FILE = "an image's file is open as text; open it for bytes"


def _array(tensor: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of a tensor [3, H, W]; floats are taken to run from 0 to 1."""
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        shape = list(tensor.shape)
        raise BrokenSample("not-an-image", "", f"a tensor of {tensor.dtype} {shape}, not of [3, H, W]")
    pixels = tensor.detach().cpu()
    if pixels.is_floating_point():
        low, high = (float(pixels.min()), float(pixels.max())) if pixels.numel() else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise BrokenSample(
                "not-an-image", "", f"a tensor of floats from {low:.3g} to {high:.3g}, not from 0 to 1"
            )
        pixels = (pixels.float() * 255).round()
    elif pixels.dtype not in (torch.uint8, torch.bool) and pixels.numel():
        integers = pixels.numpy()  # torch has no least and greatest of uint16
        least, most = int(integers.min()), int(integers.max())
        if least < 0 or most > 255:
            raise BrokenSample(
                "not-an-image", "", f"a tensor of integers from {least} to {most}, not from 0 to 255"
            )
    return pixels.to(torch.uint8).permute(1, 2, 0).numpy()


class FoundImages(list[ImageInput]):
    """Images that were found, and what beside them was left out."""

    def __init__(self, images: Iterable[ImageInput] = ()) -> None:
        super().__init__(images)
        self.left_out = LeftOut()

    def take(self, other: FoundImages) -> None:
        """Add what was found elsewhere."""
        self += other
        self.left_out.add(other.left_out)


def find_image_inputs(places: Iterable[Path | str], *, listing: TextIO | None = None) -> FoundImages:
    """Images in `places`: files as they are, folders with their subfolders, globs, tars; "-" reads a list.

    Args:
        listing: where "-" reads paths from, one a line; standard input when None.

    Raises:
        UserError: a place does not exist, a tar cannot be read, or there is no image at all.
    """
    names = [str(place) for place in places]
    found = FoundImages()
    for place in names:
        if place == STDIN:
            for line in filter(None, map(str.strip, listing or _standard_input())):
                # A line of the list that leads nowhere is one broken image, not the end of the rest.
                found.take(_at(line, strict=False))
        else:
            found.take(_at(place))
    if not found:
        lines = found.left_out.lines()
        but = f", but {'; '.join(lines)}" if lines else ""
        raise UserError(f"there is no image in {', '.join(names)}{but}")
    return found


def _standard_input() -> Iterator[str]:
    """The lines of standard input as paths, which need not be UTF-8."""
    lines: Iterable[bytes | str] = getattr(sys.stdin, "buffer", sys.stdin)  # a notebook's has no bytes
    for line in lines:
        yield os.fsdecode(line.removeprefix(codecs.BOM_UTF8) if isinstance(line, bytes) else line)


def find_images(places: Iterable[Path | str]) -> list[str]:
    """Paths of the image files among `places`, as `find_image_inputs` finds them."""
    return [image.name for image in find_image_inputs(places)]


def _at(place: str, *, strict: bool = True) -> FoundImages:
    place = local_path(place)
    path = Path(place)
    if path.is_dir():
        return _below(path)
    if path.is_file():
        return (
            _members(path, strict=strict)
            if path.suffix.lower() == ".tar"
            else FoundImages([ImageInput(str(path), path)])
        )
    if any(c in place for c in "*?[") and not os.path.lexists(place):
        return _matches(place)
    if strict:
        check_image(place)
    return FoundImages([ImageInput(place, path)])


def _below(folder: Path) -> FoundImages:
    walked = walk(folder)
    found = FoundImages()
    found.left_out.add(walked.left_out, str(folder))
    for name in sorted((*walked.images, *walked.tars)):
        path = folder / name
        if name.lower().endswith(".tar"):
            found.take(_members(path, strict=False))
        else:
            found.append(ImageInput(str(path), path))
    return found


def _matches(pattern: str) -> FoundImages:
    """What a glob matches, each file once; hidden and system files only where the pattern itself names such."""
    found, path = FoundImages(), Path(pattern)
    dots = any(part.startswith(".") and any(c in part for c in "*?[") for part in path.parts)
    seen: set[str] = set()
    # Unlike the module glob, pathlib follows no links where `**` stands.
    for match in sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))):
        odd = [part for part in match.parts if is_hidden(part) and part not in path.parts]
        if _real(match) in seen or any(not (dots and part.startswith(".")) for part in odd):
            continue
        if match.is_file() and found.left_out.take(str(match)):
            seen.add(_real(match))
            continue
        more = _at(str(match), strict=False)  # `**` matches folders as well as what is in them
        more[:] = [image for image in more if _real(image.name) not in seen]
        seen |= {_real(match), *(_real(image.name) for image in more)}
        found.take(more)
    for ending, names in found.left_out.files.items():
        found.left_out.files[ending] = list(dict.fromkeys(names))
    return found


def _real(name: Path | str) -> str:
    """What tells a file from others; two links beside each other to one file are two files all the same."""
    return os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))


def _members(tar: Path, *, strict: bool) -> FoundImages:
    """The images of a tar; of one that is cut those before the cut, where it is one of many places (not strict)."""
    found = FoundImages()
    members: list[Member] = []
    try:
        for member in read_members(tar):
            members.append(member)
    except BrokenSample as broken:
        if strict:
            raise UserError(f"{tar} cannot be read ({broken.cause}): {broken.detail}") from broken
        left = f"what follows where it cannot be read ({broken.detail})"
        found.left_out.folders.append(BrokenSample(broken.cause, str(tar), left))
    except OSError as error:
        if strict:
            raise UserError(f"{tar} cannot be read: {error}") from error
        found.left_out.folders.append(BrokenSample("unreadable", str(tar), f"it cannot be read: {error}"))
    for member in members:
        if is_hidden(member.name):
            continue
        name = f"{tar}/{member.name}"
        if ending_of(member.name) in IMAGE_SUFFIXES:
            found.append(ImageInput(name, TarMember(tar, member)))
        else:
            found.left_out.take(name)
    return found


def unusable(broken: BrokenSample) -> UserError:
    """What to raise for an image that cannot be read; one handed over by itself, "#0", has no name to tell."""
    name = "an image" if broken.key.startswith("#") else broken.key
    return UserError(f"{name} cannot be used ({broken.cause}): {broken.detail}")


def decoded(
    images: Iterable[ImageInput], transform: ImageTransform, *, batch_size: int, threads: int | None = None
) -> Iterator[ImageBatch]:
    """Batches of `images` in order, decoded ahead of whoever takes them.

    Args:
        transform: one that draws nothing at random.
        batch_size: images at a time; those that are broken leave a batch smaller.
        threads: that decode; None is one for each CPU, 8 at most.
    """
    waiting = iter(images)
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1), "decode", initializer=_one_thread)
    ahead: deque[list[tuple[ImageInput, Future[Tensor | BrokenSample]]]] = deque()

    def submit() -> None:
        batch = list(islice(waiting, batch_size))
        if batch:
            ahead.append([(image, pool.submit(_decode, image, transform)) for image in batch])
            torch.set_num_threads(num_threads)  # see `_one_thread`

    try:
        for _ in range(1 + _BATCHES_AHEAD):
            submit()
        while ahead:
            batch, rows = ImageBatch(), []
            for image, future in ahead.popleft():
                result = future.result()
                if isinstance(result, BrokenSample):
                    batch.broken.append(result)
                else:
                    batch.names.append(image.name)
                    rows.append(result)
            submit()
            if rows:
                batch.pixels = torch.stack(rows)
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    # One image is too little work to share among cores. The setting is each thread's own once the thread has
    # requested it, but also what later threads start from: `decoded` puts it back.
    torch.get_num_threads()
    torch.set_num_threads(1)


def _decode(image: ImageInput, transform: ImageTransform) -> Tensor | BrokenSample:
    """uint8 [3, H, W], or why not."""
    try:
        return transform(image.decode(transform.min_side), _NO_RANDOM)
    except BrokenSample as broken:
        return broken
