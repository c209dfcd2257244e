"""The files of cached features: one .safetensors a shard, written row by row and read row by row.

    with ShardWriter(folder / "features-000000000.safetensors", "int8", (C, N, D)) as shard:
        shard.add(["a.jpg", "b.jpg"], features)        # [2, C, N, D]: C crops of each image, N tokens, D width
        shard.finish(Span(0, 2), inputs)               # without this nothing is left
    ShardHead.read(path).keys                          # ["a.jpg", "b.jpg"]
    open_shard(path)[1, 0]                             # [N, D]: image 1, crop 0

A shard holds the tensors `features` [n, C, N, D], `keys` (their JSON as bytes) and, of int8, `scales`. Rows go to
the file as they are computed, so that no shard is held in memory. The header of a .safetensors file stands at its
beginning and names sizes that are known at the end; room is left for it. It holds a checksum (CRC-32) of all
bytes behind it, which `ShardHead.is_whole` compares; older shards have none.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openblip.core.compute import DTYPES
from openblip.core.errors import UserError, first_line
from openblip.core.files import atomic_path
from openblip.core.text import json_bytes

__all__ = [
    "Shard",
    "ShardHead",
    "ShardWriter",
    "Span",
    "StorageError",
    "Store",
    "bytes_of_image",
    "dequantize",
    "open_shard",
    "quantize",
    "shard_files",
    "shard_path",
]

Store = Literal["float32", "float16", "bfloat16", "int8"]
"""How values are kept. In int8, value [t, d] of a crop is `integer * scale of token t * scale of channel d`: a few
channels of a Vision Transformer, and a few of its tokens, are ten times as large as the others."""

_HEADER = 4096  # bytes before the features; a multiple of every value's size, so that mapped values are aligned
_CHUNK = 1 << 20
_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}


class Span(NamedTuple):
    """Images `first` to `last` of all, `last` not included."""

    first: int
    last: int


def shard_path(folder: Path, first: int) -> Path:
    """Where the shard lies whose first image is `first` of all."""
    return folder / f"features-{first:09d}.safetensors"


def shard_files(folder: Path) -> list[Path]:
    """All shards of a folder, in the order of their images."""
    return sorted(folder.glob("features-*.safetensors"))


def bytes_of_image(shape: Sequence[int], store: Store) -> int:
    """How much the features [C, N, D] of one image take on disk."""
    crops, tokens, width = shape
    if store == "int8":
        return crops * (tokens * width + 4 * (tokens + width))
    return crops * tokens * width * DTYPES[store].itemsize


def quantize(features: Tensor) -> tuple[Tensor, Tensor]:
    """float [..., N, D] -> int8 [..., N, D] and float32 scales [..., N + D], those of the tokens first."""
    values, tiny = features.float(), torch.finfo(torch.float32).tiny
    # Channels are compared over tokens of equal size: one large token would else set the scale of every channel.
    sizes = values.square().mean(-1, keepdim=True).sqrt_().clamp_min_(tiny)
    channels = (values / sizes).abs_().amax(-2, keepdim=True).clamp_min_(tiny)
    values = values / channels
    tokens = (values.abs().amax(-1, keepdim=True) / 127).clamp_min_(tiny)
    return (values / tokens).round_().to(torch.int8), torch.cat([tokens[..., 0], channels[..., 0, :]], -1)


def dequantize(integers: Tensor, scales: Tensor) -> Tensor:
    """What `quantize` was given, nearly, in float32."""
    tokens, channels = scales.split([integers.shape[-2], integers.shape[-1]], -1)
    return integers * tokens[..., None] * channels[..., None, :]


class StorageError(NamedTuple):
    """Sums over values and tokens, of which follows what storage changed."""

    squares: float = 0.0
    """of the values"""
    changes: float = 0.0
    """squares of what storage changed of them"""
    cosines: float = 0.0
    """between each token before and after"""
    tokens: int = 0

    @classmethod
    def between(cls, values: Tensor, stored: Tensor) -> StorageError:
        """Of values [..., D] and what is read of them."""
        cosines = torch.cosine_similarity(values, stored, dim=-1)
        squares, changes = values.square().sum().item(), (stored - values).square().sum().item()
        return cls(squares, changes, cosines.sum().item(), cosines.numel())

    def plus(self, other: StorageError) -> StorageError:
        """Of both together."""
        return StorageError(
            self.squares + other.squares,
            self.changes + other.changes,
            self.cosines + other.cosines,
            self.tokens + other.tokens,
        )

    @property
    def relative(self) -> float:
        """Root of the mean squared change, relative to that of the values."""
        return math.sqrt(self.changes / self.squares) if self.squares else 0.0

    @property
    def cosine(self) -> float:
        """Mean over tokens."""
        return self.cosines / self.tokens if self.tokens else 1.0


class ShardWriter:
    """A shard that is written row by row and appears when it is finished.

    Args:
        shape: of the features of an image, [C, N, D].

    Raises:
        UserError: the disk is full, or a value does not fit the dtype.
    """

    def __init__(self, path: Path, store: Store, shape: tuple[int, int, int]) -> None:
        self._path, self._store, self._shape = path, store, shape
        self._stack = ExitStack()
        self._keys: list[str] = []
        self._scales: list[Tensor] = []
        self._error = StorageError()
        self._sum = 0

    def __enter__(self) -> ShardWriter:
        temporary = self._stack.enter_context(atomic_path(self._path))
        self._file: BinaryIO = self._stack.enter_context(open(temporary, "wb"))
        self._file.write(bytes(_HEADER))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, keys: Sequence[str], features: Tensor) -> None:
        """Append the features [n, C, N, D] of `keys`."""
        features = features.cpu()
        if self._store == "int8":
            stored, scales = quantize(features)
            self._scales.append(scales)
            back = dequantize(stored, scales)
        else:
            stored = features.to(DTYPES[self._store])
            back = stored.float()
        if stored.dtype != features.dtype:
            values = features.float()
            if not bool(back.isfinite().all()):
                largest = values.abs().max().item()
                raise UserError(
                    f"values up to {largest:.3g} cannot be stored as {self._store}; choose bfloat16, or the dtype "
                    "that they are computed in"
                )
            self._error = self._error.plus(StorageError.between(values, back))
        self._keys += keys
        self._write(stored)

    def finish(self, span: Span, inputs: str) -> None:
        """Say what the rows are of.

        Args:
            span: of the images that were read; those that cannot be are among them and have no row.
            inputs: fingerprint of these images.
        """
        crops, tokens, width = self._shape
        count = len(self._keys)
        told = {"format": "pt", "first": str(span.first), "last": str(span.last), "inputs": inputs}
        header: dict[str, Any] = {}
        begin = 0

        def name(tensor: str, dtype: str, shape: list[int]) -> None:
            nonlocal begin
            end = self._file.tell() - _HEADER
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            begin = end

        name("features", _NAMES[self._store], [count, crops, tokens, width])
        keys = json_bytes(self._keys)
        keys += b" " * (-(begin + len(keys)) % 4)  # float32 follows
        self._append(keys)
        name("keys", "U8", [len(keys)])
        if self._store == "int8":
            for scales in self._scales:
                self._write(scales)
            name("scales", "F32", [count, crops, tokens + width])
        told |= {"error": json.dumps(self._error), "crc32": f"{self._sum:08x}"}
        packed = json_bytes({"__metadata__": told, **header})
        assert len(packed) <= _HEADER - 8
        self._file.seek(0)
        self._file.write((_HEADER - 8).to_bytes(8, "little") + packed.ljust(_HEADER - 8))
        self._file.flush()

    def _write(self, values: Tensor) -> None:
        self._append(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sum = zlib.crc32(data, self._sum)


@dataclass(frozen=True)
class ShardHead:
    """What a shard says of itself."""

    path: Path
    span: Span
    inputs: str
    """fingerprint of the images"""
    error: StorageError
    shape: tuple[int, int, int]
    """of an image's features, [C, N, D]"""
    keys: list[str]
    checksum: str | None
    """of what stands behind the header; None in a shard of an older version"""

    @classmethod
    def read(cls, path: Path) -> ShardHead:
        """Read it.

        Raises:
            UserError: the file is cut, or is not such a shard.
        """
        try:
            with safe_open(path, "pt") as opened:
                told = opened.metadata()
                shape = opened.get_slice("features").get_shape()
                keys = json.loads(opened.get_tensor("keys").numpy().tobytes())
            span = Span(int(told["first"]), int(told["last"]))
            error = StorageError(*json.loads(told["error"]))
            if len(keys) != shape[0]:
                raise ValueError(f"{len(keys)} keys for {shape[0]} rows")
            return cls(path, span, told["inputs"], error, (shape[1], shape[2], shape[3]), keys, told.get("crc32"))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as reason:
            raise _damaged(path, reason) from reason

    def is_whole(self) -> bool:
        """Whether its values are those that were written; a shard without a checksum passes.

        The whole file is read, 64 MB in 30 ms where the disk gives them.
        """
        if self.checksum is None:
            return True
        found, buffer = 0, bytearray(_CHUNK)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(_HEADER)
                while count := file.readinto(buffer):
                    found = zlib.crc32(memoryview(buffer)[:count], found)
        except OSError:  # of the disk
            return False
        return f"{found:08x}" == self.checksum


class Shard:
    """The mapped rows of a shard: `shard[row, crop]` -> [N, D], of int8 in float32."""

    def __init__(self, features: Tensor, scales: Tensor | None) -> None:
        self._features, self._scales = features, scales

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        row = self._features[place]
        return row if self._scales is None else dequantize(row, self._scales[place])


def open_shard(path: Path) -> Shard:
    """Map a shard; nothing is read yet.

    Raises:
        UserError: the file is cut, or is not such a shard.
    """
    try:
        with safe_open(path, "pt") as opened:
            scales = opened.get_tensor("scales") if "scales" in opened.keys() else None  # noqa: SIM118  no mapping
            return Shard(opened.get_tensor("features"), scales)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"the features in {path} cannot be read ({first_line(error)}); run cache-features again")
