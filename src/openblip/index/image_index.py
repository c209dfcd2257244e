"""An index of images on disk: search by text, by image or by both, with ITM's probability for each hit.

    index = ImageIndex.open("INDEX")
    for hit in index.search(text="a red bus", count=5):
        hit.path, hit.itm, hit.caption
    index.search(text="+car -red", image="x.jpg", filters=Filters(folder="photos/2024", words="street"))

An index is a catalog (the truth), a store of vectors, and a cache of image features: all in a folder, or the first
two in PostgreSQL (`stores`). Many processes may search it while one writes (`building`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import logsigmoid

from openblip.core.errors import UserError
from openblip.core.tokenizer import TokenBatch
from openblip.data.image_inputs import ImageInput, ImageInputs
from openblip.data.images import MAX_PIXELS
from openblip.data.sample import BrokenSample
from openblip.index.catalog import Catalog, Record
from openblip.index.duplicates import alike_by_hash, alike_by_vectors, confirmed, groups_of
from openblip.index.entries import read_image
from openblip.index.features import DiskFeatures
from openblip.index.filters import Filters
from openblip.index.model import model_fingerprint, open_model_of
from openblip.index.queries import parse_query
from openblip.index.stores import cache_folder, open_database, store_of
from openblip.index.vectors import Term, VectorStore
from openblip.tasks.predictor import Predictor
from openblip.tasks.retrieval import embed_texts, match_logits, match_margin

__all__ = ["CACHE_BYTES", "Hit", "ImageIndex"]

CACHE_BYTES = 2**30
"""of image features for ITM that are kept on disk"""
_RERANK = 32


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that a search found."""

    path: str
    """absolute; inside a tar TAR/KEY"""
    score: float
    """ITC similarity, and where ITM read the image its logit of "matched" besides; of several texts the weighted
    sum of the logarithms of their probabilities. Hits are ordered by it, those that ITM read before all others"""
    itm: float | None
    """probability by ITM that the image shows what was asked for, of several texts the product of theirs; None
    where ITM did not read it"""
    caption: str
    """the first of its captions, "" for none"""
    metadata: dict[str, Any]
    itc: float
    """cosine of the embeddings; weighted sum of those of several terms"""
    id: int
    """for `ImageIndex.image`"""
    date: str
    """when it was taken or modified: "2024-05-01 12:30:00" """


class ImageIndex:
    """An index that is open; may be searched by several threads. `open` makes one."""

    def __init__(self, catalog: Catalog, store: VectorStore, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.catalog, self.store, self.name = catalog, store, catalog.database.name
        self._cache_bytes = cache_bytes
        self._features: DiskFeatures | None = None
        self._predictor: Predictor | None = None
        self._how: dict[str, Any] = {}
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        path: Path | str,
        model: Predictor | str | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 16,
        cache_bytes: int = CACHE_BYTES,
    ) -> ImageIndex:
        """Open an index to search it.

        Args:
            path: its folder, or its address in PostgreSQL, postgresql://USER@HOST/DATABASE#NAME.
            model: the model it was built with, opened or by its place; None opens it, when it is first needed, from
                where it was.
            device, dtype, batch_size: as `tasks.load.load`, for a model that is not opened yet.
            cache_bytes: of image features for ITM that are kept on disk.

        Raises:
            UserError: there is no index, or `model` is another one than the index was built with.
        """
        catalog = Catalog(open_database(path))
        index = cls(catalog, store_of(catalog), cache_bytes=cache_bytes)
        index._how = {
            "model": model if isinstance(model, str) else None,
            "device": device,
            "dtype": dtype,
            "batch_size": batch_size,
        }
        if isinstance(model, Predictor):
            index.use(model)
        return index

    def close(self) -> None:
        """Close its files."""
        self.catalog.close()
        if self._features is not None:
            self._features.close()

    def __enter__(self) -> ImageIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The model --------------------------------------------------------------------------------------------

    def use(self, predictor: Predictor) -> None:
        """Search with a model.

        Raises:
            UserError: it is another one than the index was built with.
        """
        found, wanted = model_fingerprint(predictor), self.catalog.settings["fingerprint"]
        if found != wanted:
            raise UserError(
                f"the index {self.name} was built with another model ({self.catalog.settings['model']}, "
                f"fingerprint {wanted[:8]}, this one's is {found[:8]}); use that one, or build a new index"
            )
        self._predictor = predictor

    @property
    def predictor(self) -> Predictor:
        """The model, opened when it is first needed."""
        with self._lock:
            if self._predictor is None:
                self.use(open_model_of(self.catalog.settings, **self._how))
            assert self._predictor is not None
            return self._predictor

    @property
    def features(self) -> DiskFeatures:
        """Image features on disk."""
        with self._lock:
            if self._features is None:
                self._features = DiskFeatures(cache_folder(self.catalog), self._cache_bytes)
            return self._features

    # Search -----------------------------------------------------------------------------------------------

    def search(
        self,
        *,
        text: str | None = None,
        image: ImageInputs | None = None,
        count: int = 10,
        rerank: int | None = None,
        filters: Filters | None = None,
    ) -> list[Hit]:
        """The best images for a text, an image, or both: ITC over all, then ITM over the best of these.

        Args:
            text: "a red bus", or several with weights: "+car -red".
            image: that hits are to be similar to.
            count: hits.
            rerank: candidates that ITM reads; 0 orders by ITC alone, None is 32 where the model has ITM. Without a
                text there is nothing for ITM to read.

        Raises:
            UserError: there is nothing to search for, the model cannot read it, or it has no ITM.
        """
        if text is None and image is None:
            raise UserError("a search needs a text or an image")
        if count < 1:
            raise UserError(f"a search gives at least 1 hit, not {count}")
        if rerank is not None and rerank < 0:
            raise UserError(f"rerank is a number of candidates, 0 for ITC alone, not {rerank}")
        predictor = self.predictor
        asked = parse_query(text) if text is not None else []
        if rerank is None:
            rerank = _RERANK if "match" in predictor.can else 0
        terms: list[Term] = []
        tokens: TokenBatch | None = None
        if asked:
            tokens, vectors = self._read([words for words, _ in asked])
            terms += [Term(vector, weight) for vector, (_, weight) in zip(vectors.cpu(), asked, strict=True)]
        if image is not None:
            terms += [Term(vector.reshape(self.store.shape)) for vector in predictor.embed_images(image)]
        candidates = self._candidates(terms, max(count, rerank if asked else 0), filters)
        if tokens is None or rerank <= 0 or not candidates:
            return [_hit(record, score, score, None) for score, record in candidates[:count]]
        weights = torch.tensor([weight for _, weight in asked])
        return self._rerank(tokens, weights, candidates[:rerank], candidates[rerank:])[:count]

    def _read(self, texts: Sequence[str]) -> tuple[TokenBatch, Tensor]:
        """Ids and normalised features [C, E] of texts; `Predictor.embedded_texts` is for one thread."""
        adapter = self.predictor.adapter.need("embed")
        adapter.check_texts(texts)
        return embed_texts(adapter, [adapter.clean(text) for text in texts])

    def _candidates(self, terms: Sequence[Term], count: int, filters: Filters | None) -> list[tuple[float, Record]]:
        """The best images by ITC; those of equal content share a vector."""
        scores, numbers = self.store.search(terms, count, filters)
        found = self.catalog.by_vectors(numbers.tolist(), filters)
        pairs = zip(scores.tolist(), numbers.tolist(), strict=True)
        return [(score, record) for score, number in pairs for record in found.get(number, ())]

    def _rerank(
        self,
        tokens: TokenBatch,
        weights: Tensor,
        candidates: Sequence[tuple[float, Record]],
        rest: Sequence[tuple[float, Record]],
    ) -> list[Hit]:
        """Candidates by ITC and ITM, those that cannot be read any more and the rest behind them.

        Args:
            tokens: of C texts.
            weights: [C].
        """
        logits = self._match_logits(tokens, [record for _, record in candidates])
        # Each of several texts must hold, or not hold: a good fit of one does not make up for a bad fit of another.
        fit = logsigmoid(match_margin(logits) * weights.sign())
        ranked = (logits[:, 0, 1] if len(weights) == 1 else fit @ weights.abs()).tolist()
        together = fit.sum(1).exp().tolist()
        hits = [
            _hit(record, itc, itc, None) if math.isnan(fits) else _hit(record, itc + fits, itc, itm)
            for (itc, record), fits, itm in zip(candidates, ranked, together, strict=True)
        ]
        hits += [_hit(record, itc, itc, None) for itc, record in rest]
        return sorted(hits, key=lambda hit: (hit.itm is None, -hit.score))

    def _match_logits(self, tokens: TokenBatch, records: Sequence[Record]) -> Tensor:
        """ITM logits (not matched, matched) of C texts, float32 [I, C, 2]; NaN where an image cannot be read."""
        predictor = self.predictor
        model, texts = predictor.adapter.need("match"), len(tokens)
        logits = torch.full((len(records), texts, 2), float("nan"))
        for start in range(0, len(records), predictor.batch_size):
            part = records[start : start + predictor.batch_size]
            embeds = self.image_embeds(part)
            rows = [row for row, record in enumerate(part) if record.hash in embeds]
            if not rows:
                continue
            pairs = torch.cartesian_prod(torch.arange(texts), torch.arange(len(rows))).view(-1, 2)
            together = torch.stack([embeds[part[row].hash] for row in rows])
            found = match_logits(model, together, tokens, pairs).view(texts, len(rows), 2)
            logits[start + torch.tensor(rows)] = found.transpose(0, 1)
        return logits

    def image_embeds(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Features [N, Dv] that ITM reads, by the hash of the content, of the images that can be read.

        They went through float16 whether they were at hand or not, so that a search gives the same each time.
        """
        predictor, dtype = self.predictor, self.predictor.dtype
        keys = {record.hash: f"{record.hash}-{str(dtype).removeprefix('torch.')}" for record in records}
        kept = self.features.get(list(keys.values()))
        missing = [record for record in records if keys[record.hash] not in kept]
        unread = {record.path: record for record in {record.hash: record for record in missing}.values()}
        for batch in predictor.batches(_inputs(list(unread.values()))):
            if len(batch):
                names = [keys[unread[name].hash] for name in batch.names]
                new = dict(zip(names, predictor.encode(batch).to(torch.float16).cpu(), strict=True))
                self.features.put(new)
                kept |= new
        return {content: kept[key].to(predictor.device, dtype) for content, key in keys.items() if key in kept}

    # Images -----------------------------------------------------------------------------------------------

    def record(self, number: int) -> Record:
        """An image by the id of a hit.

        Raises:
            UserError: there is none.
        """
        found = self.catalog.by_ids([number]).get(number)
        if found is None:
            raise UserError(f"the index holds no image with id {number}")
        return found

    def image(self, number: int, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """An image by the id of a hit, upright and RGB; a large JPEG smaller, down to a short side of `min_side`.

        Raises:
            UserError: there is none, its file cannot be read any more, or it has more than `max_pixels`.
        """
        record = self.record(number)
        try:
            return ImageInput(record.path, read_image(record)).decode(min_side, max_pixels)
        except BrokenSample as broken:
            raise UserError(f"{record.path} cannot be used ({broken.cause}): {broken.detail}") from broken

    def duplicates(
        self,
        *,
        by: Literal["look", "vectors"] = "look",
        distance: int = 4,
        similarity: float | None = None,
        filters: Filters | None = None,
    ) -> list[list[Record]]:
        """Groups of images that are nearly the same, the largest file of each first.

        Args:
            by: "look": perceptual hashes that differ in at most `distance` of 64 bits, confirmed by vectors with a
                cosine of `similarity` (0.9); "vectors": that cosine alone (0.97), all compared with all.
        """
        numbers = sorted(set(self.catalog.vectors(filters)))
        images = self.catalog.by_vectors(numbers, filters)
        numbers = [number for number in numbers if number in images]
        if by == "vectors":
            pairs = list(alike_by_vectors(self.store, numbers, 0.97 if similarity is None else similarity))
        else:
            least = 0.9 if similarity is None else similarity
            looks = [images[number][0].look for number in numbers]
            pairs = list(confirmed(self.store, numbers, alike_by_hash(looks, distance), least))
        groups = {tuple(group) for group in groups_of(len(numbers), pairs)}
        inside = {one for group in groups for one in group}
        groups |= {(one,) for one, number in enumerate(numbers) if one not in inside and len(images[number]) > 1}
        return [
            sorted((record for one in group for record in images[numbers[one]]), key=lambda r: (-r.size, r.path))
            for group in sorted(groups)
        ]


def _inputs(records: Sequence[Record]) -> list[ImageInput]:
    """Images to decode; one whose file is gone is broken when it is decoded."""
    inputs = []
    for record in records:
        try:
            inputs.append(ImageInput(record.path, read_image(record)))
        except BrokenSample:
            inputs.append(ImageInput(record.path, b""))
    return inputs


def _hit(record: Record, score: float, itc: float, itm: float | None) -> Hit:
    return Hit(
        path=record.path,
        score=score,
        itm=itm,
        caption=record.captions[0] if record.captions else "",
        metadata=record.metadata,
        itc=itc,
        id=record.id,
        date=record.date,
    )
