"""What a BLIP writes, finds and matches for unseen images of the scene world, judged by their scenes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.data.sources.base import SourceConfig
from openblip.data.transforms import normalize
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.truth import caption_report
from openblip.generation.types import DecodeConfig
from openblip.models.blip import Blip
from openblip.tasks.caption import write_captions
from openblip.tasks.retrieval import evaluate_retrieval
from openblip.tasks.run import evaluation_batches

__all__ = ["GREEDY", "measure_blip", "written_truth"]

GREEDY = DecodeConfig(max_new_tokens=36)
_TOKENS = 40


def written_truth(
    model: Blip, tokenizer: TextTokenizer, source: SourceConfig, samples: int, decode: DecodeConfig = GREEDY
) -> dict[str, Any]:
    """`caption_report` of the captions written for the first `samples` images of `source`."""
    captions, scenes = [], []
    for batch in _batches(model, source, samples):
        memory = model.remember(model.encode_image(normalize(batch.images)))
        captions += [found[0].text for found in write_captions(model, tokenizer, memory, decode)]
        scenes += [scene_from_meta(meta) for meta in batch.meta]
    return caption_report(captions, scenes)


def measure_blip(
    model: Blip, tokenizer: TextTokenizer, source: SourceConfig, samples: int, *, rerank_k: int = 16
) -> dict[str, Any]:
    """Metrics of the parts that the model has: truth of greedy captions; recall by ITC and ITM, ITM accuracy.

    Args:
        source: images with the scene in `meta`.
        samples: images that are read, from the first.
        rerank_k: candidates of each query that ITM reads.
    """
    found: dict[str, Any] = {}
    if model.config.decoder:
        found |= written_truth(model, tokenizer, source, samples)
    if model.config.encoder:
        batches = _batches(model, source, samples)
        found |= evaluate_retrieval(model, tokenizer, batches, rerank_k=rerank_k, max_length=_TOKENS)
    return found


def _batches(model: Blip, source: SourceConfig, samples: int) -> Iterator[Batch]:
    size = model.config.vision.image_size
    return evaluation_batches((source,), size, samples=samples, batch_size=100, clean="simplify")
