"""Digests that tell one thing from another: weights, data, images. All are BLAKE2b, in hexadecimal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # data are opened without torch

__all__ = ["Digest", "fingerprint", "short_hash"]

_BEGINNING, _SIGNS = 64, 4096
"""values of each tensor that are read"""


def short_hash(data: Any) -> str:
    """16 hex digits that tell bytes (or any buffer) from others."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def fingerprint(
    named: Iterable[tuple[str, Tensor]], *, config: Any = None, whole: bool = False, signs: bool = False
) -> str:
    """32 hex digits that tell one set of weights from another; the order counts.

    Args:
        config: plain data that counts too.
        whole: read every value; otherwise names, shapes and the beginning of each tensor stand for it, which is
            enough to tell a model from one trained apart from it, and takes no time.
        signs: read the signs of a longer beginning, which are the same in every dtype. Training changes the sign of
            many small weights at once, so that a fine-tuned model differs too.
    """
    digest = hashlib.blake2b(b"" if config is None else json.dumps(config, sort_keys=True).encode(), digest_size=16)
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().reshape(-1)
        if signs:
            digest.update(np.packbits(values[:_SIGNS].signbit().cpu().numpy()).tobytes())
        else:
            read = values[: None if whole else _BEGINNING]
            # A copy: a view by numpy forbids to resize the storage, as FSDP2 does with gathered weights.
            digest.update(read.clone().float().cpu().numpy().tobytes())
    return digest.hexdigest()


class Digest:
    """A hash that takes plain values, bytes and arrays; what was added apart cannot run together."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, *values: Any) -> None:
        """Add plain values."""
        self.raw(json.dumps(values, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass"))

    def raw(self, data: Any) -> None:
        """Add bytes, or a buffer of bytes."""
        self._hash.update(len(data).to_bytes(8, "little"))
        self._hash.update(data)

    def numbers(self, values: np.ndarray) -> None:
        """Add an array, whatever integers it is made of."""
        self.raw(np.ascontiguousarray(values, dtype="<i8").tobytes())

    def value(self) -> str:
        """The digest, 32 hex digits."""
        return self._hash.hexdigest()
