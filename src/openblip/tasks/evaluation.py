"""The batches that a model is evaluated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from openblip.core.errors import UserError
from openblip.data.measured import Measured
from openblip.data.sample import Batch, Sample
from openblip.data.sources.base import Source, SourceConfig
from openblip.data.sources.digest import Digest
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform

__all__ = ["FirstSamples", "evaluation_batches"]


def evaluation_batches(
    sources: Sequence[SourceConfig | Source],
    image_size: int | tuple[int, int],
    *,
    samples: int,
    batch_size: int = 64,
    clean: Any,
    num_images: int = 1,
    measured: Measured | None = None,
) -> Iterator[Batch]:
    """The first `samples` samples in order, each with all its texts, images resized whole.

    Nothing takes the place of a broken sample: it is left out and noted in `measured`.

    Raises:
        UserError: no image can be used, or one cannot and there is no `measured` to note it in.
    """
    opened: list[Source] = []
    log = measured if measured is not None else Measured()
    log.num_images = log.num_texts = 0
    left = samples
    for source in (s if isinstance(s, Source) else open_source(s) for s in sources):
        if left > 0:
            opened.append(FirstSamples(source, left))
        left -= len(source)
    loader = Loader(
        opened,
        evaluation_transform(image_size),
        max(1, batch_size // max(1, *(source.frames for source in opened))),
        shuffle=False,
        drop_last=False,
        text_mode="all",
        clean=clean,
        max_words=None,
        num_images=num_images,
        leave_out=True,
        skip_log=log,
    )
    for batch in loader:
        if measured is None and log.left_out:
            break
        log.num_images += len(batch)
        log.num_texts += len(batch.texts)
        yield batch
    if log.left_out and (measured is None or not log.num_images):
        first = log.left_out[0]
        message = f"{first['key']}, {first['cause']}: {first['detail']}"
        if measured is None:
            raise UserError(f"a measure cannot use a sample of {first['source']} ({message}); repair or remove it")
        raise UserError(f"there is nothing to measure on: no sample of {first['source']} can be used ({message})")


class FirstSamples(Source):
    """The first samples of a source."""

    def __init__(self, source: Source, count: int) -> None:
        super().__init__()
        self.name, self.bad_rows, self.num_images = source.name, source.bad_rows, source.num_images
        self.frames = source.frames
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._source[index]

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        self._source.digest(digest, span, texts=texts)
