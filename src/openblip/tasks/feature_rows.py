"""Image features of a whole collection, gathered batch by batch: in memory up to a size, above it in a file.

    with FeatureRows(max_bytes=2**30) as rows:
        for batch in batches:
            rows.append(model.encode(batch.images))        # [B, N, Dv]
        image_embeds = rows.tensor()                        # [I, N, Dv]

The file has no name where the system allows it, so its space is free again as soon as nobody holds the tensor,
however the process ends.
"""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import IO

import numpy as np
import torch
from torch import Tensor

from openblip.core.errors import UserError

__all__ = ["FeatureRows"]


class FeatureRows:
    """Appends features and gives them back as one tensor.

    Args:
        max_bytes: what is kept in memory; when more comes, everything goes to a file in the system's folder for
            temporary files (TMPDIR), and `tensor` is mapped from there, in the dtype the features came in.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[Tensor] = []
        self._file: IO[bytes] | None = None
        self._count = self._bytes = 0
        self._shape, self._dtype = torch.Size(), torch.float32

    def __enter__(self) -> FeatureRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parts = []
        if self._file is not None:
            self._file.close()

    @property
    def on_disk(self) -> bool:
        """Whether the features are in a file."""
        return self._file is not None

    def append(self, features: Tensor) -> None:
        """Add features [B, N, Dv] of one shape and dtype.

        Raises:
            UserError: the disk is full.
        """
        self._count, self._bytes = self._count + len(features), self._bytes + features.nbytes
        self._shape, self._dtype = features.shape[1:], features.dtype
        self._parts.append(features)
        if self._file is None and self._bytes <= self._max_bytes:
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
            for part in self._parts:
                self._file.write(part.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"the features of {self._count} images ({self._bytes / 1e9:.1f} GB so far) cannot be written to "
                f"{tempfile.gettempdir()} ({error.strerror}); name a folder with more room in TMPDIR, or measure "
                "on fewer images"
            ) from error
        self._parts = []

    def tensor(self) -> Tensor:
        """All features [I, N, Dv]; from a file they are mapped into memory as they are read, on the CPU."""
        if self._file is None:
            return torch.cat(self._parts)
        # Copy on write: torch asks for memory that can be written. The mapping outlives the file's closing.
        mapped = np.memmap(self._file, dtype=np.uint8, mode="c")
        return torch.from_numpy(mapped).view(self._dtype).view(self._count, *self._shape)
