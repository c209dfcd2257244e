"""The batches that a model is evaluated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from openblip.core.errors import UserError
from openblip.core.sharing import joint, own_part
from openblip.data.batches import TextMode
from openblip.data.clean import CleanText, cleaned
from openblip.data.measured import Measured
from openblip.data.sample import Batch, Sample
from openblip.data.source_config import SourceConfig
from openblip.data.sources.base import Source
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
    clean: CleanText,
    as_written: bool = False,
    num_images: int = 1,
    need_texts: bool = True,
    measured: Measured | None = None,
) -> Iterator[Batch]:
    """The first `samples` samples in order, each with all its texts, images resized whole.

    Nothing takes the place of a broken sample: it is left out and noted in `measured`. Within `sharing` each rank
    gets its part of the samples, each of which is on one rank.

    Args:
        as_written: texts that have a word when they are cleaned, but not cleaned.
        need_texts: False takes samples without a text too, as those of a test split whose captions are written.

    Raises:
        UserError: no image can be used, or one cannot and there is no `measured` to note it in.
    """
    log = measured if measured is not None else Measured()
    log.num_images = log.num_texts = 0
    opened = [source if isinstance(source, Source) else open_source(source) for source in sources]
    own = _own(opened, samples, clean if as_written else "none")
    mode: TextMode = "all" if need_texts else "any"
    read: CleanText = "none" if as_written else clean
    for batch in _loader(own, image_size, batch_size, read, num_images, mode, log) if own else ():
        if measured is None and log.left_out:
            break
        log.num_images += len(batch)
        log.num_texts += len(batch.texts)
        yield batch
    left_out = joint(log.left_out)
    if left_out and (measured is None or not sum(joint([log.num_images]))):
        first = left_out[0]
        message = f"{first['key']}, {first['cause']}: {first['detail']}"
        if measured is None:
            raise UserError(f"a measure cannot use a sample of {first['source']} ({message}); repair or remove it")
        raise UserError(f"there is nothing to measure on: no sample of {first['source']} can be used ({message})")


def _own(sources: Sequence[Source], samples: int, with_words: CleanText) -> list[Source]:
    """This rank's part of the first `samples` samples; arguments as of `FirstSamples`."""
    part = own_part(min(samples, sum(map(len, sources))))
    own: list[Source] = []
    before = 0
    for source in sources:
        first, last = max(part.start - before, 0), min(part.stop - before, len(source))
        if first < last:
            own.append(FirstSamples(source, last - first, skip=first, with_words=with_words))
        before += len(source)
    return own


def _loader(
    sources: list[Source],
    image_size: int | tuple[int, int],
    batch_size: int,
    clean: CleanText,
    num_images: int,
    text_mode: TextMode,
    log: Measured,
) -> Loader:
    return Loader(
        sources,
        evaluation_transform(image_size),
        max(1, batch_size // max(1, *(source.frames for source in sources))),
        shuffle=False,
        drop_last=False,
        text_mode=text_mode,
        clean=clean,
        max_words=None,
        num_images=num_images,
        leave_out=True,
        skip_log=log,
    )


class FirstSamples(Source):
    """The first samples of a source, after `skip` others; `with_words` drops texts that it cleans to nothing."""

    def __init__(self, source: Source, count: int, *, skip: int = 0, with_words: CleanText = "none") -> None:
        super().__init__()
        self.name, self.bad_rows, self.num_images = source.name, source.bad_rows, source.num_images
        self.frames = source.frames
        self._source, self._skip, self._count = source, skip, min(count, len(source) - skip)
        self._with_words: CleanText = with_words

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[self._skip + index]
        if self._with_words == "none":
            return sample
        return replace(sample, texts=tuple(text for text in sample.texts if cleaned(text, self._with_words)))

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        self._source.digest(digest, range(self._skip + span.start, self._skip + span.stop), texts=texts)
