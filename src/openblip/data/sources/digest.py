"""What tells data from others of the same size, without reading images: `Source.fingerprint` is made of it.

Contents count and times do not: data that were copied or touched are the same. Where reading all would take long,
samples spread evenly over the source stand for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from openblip.core import fingerprint
from openblip.data.sample import BrokenSample, Sample
from openblip.data.sources.columns import one_array

__all__ = ["MOST_SIZES", "MOST_TEXTS", "Digest", "pieces", "spread"]

MOST_SIZES = 10_000
"""image files whose sizes are requested, of a span of samples"""
MOST_TEXTS = 100_000
"""samples whose texts are read from files of their own, of a span of samples"""
_PIECE = 1 << 18
_PLAIN = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


class Digest(fingerprint.Digest):
    """A hash of samples, which takes columns too.

    Attributes:
        sizes: whether sizes of image files count; they do not where images are not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes = True

    def strings(self, column: pa.Array | pa.ChunkedArray) -> None:
        """Add a column; of one that is not made of strings, its values as JSON."""
        if not any(is_one(column.type) for is_one in _PLAIN):
            self.add(column.to_pylist())
            return
        array = one_array(column)
        self.numbers(pc.fill_null(pc.binary_length(array), -1).to_numpy(zero_copy_only=False))
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8) if offsets is not None else [0]
        self.raw(memoryview(data)[int(ends[0]) : int(ends[-1])] if data is not None else b"")

    def images(self, column: pa.ChunkedArray) -> None:
        """Add the sizes of images inside a table, and the paths of others."""
        for chunk in column.chunks:
            parts = [chunk.field(name) for name in ("bytes", "path")] if pa.types.is_struct(chunk.type) else [chunk]
            for part in parts:
                if pa.types.is_binary(part.type) or pa.types.is_large_binary(part.type):
                    self.numbers(pc.fill_null(pc.binary_length(part), -1).to_numpy(zero_copy_only=False))
                elif pa.types.is_string(part.type) or pa.types.is_large_string(part.type):
                    self.strings(part)

    def image_size(self, sample: Sample) -> None:
        """Add how large the file of each image is, -1 where there is none."""
        for image in sample.images if self.sizes else ():
            try:
                self.numbers(np.array(os.stat(image).st_size))  # type: ignore[arg-type]
            except (OSError, TypeError, ValueError):
                self.numbers(np.array(-1))

    def broken(self, broken: BrokenSample) -> None:
        """Add what is wrong with a sample."""
        self.add(broken.cause, broken.key)


def spread(span: range, most: int) -> range:
    """At most `most` samples of a span, evenly apart."""
    return span[:: max(1, -(-len(span) // most))]


def pieces(span: range, size: int = _PIECE) -> Iterator[range]:
    """A span piece by piece, so that columns of millions are not copied as a whole."""
    return (span[first : first + size] for first in range(0, len(span), size))
