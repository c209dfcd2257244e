"""What a BLIP writes, finds and matches for unseen images of the scene world, judged by their scenes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openblip.data.sample import Batch
from openblip.data.source_config import SourceConfig
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.truth import caption_report
from openblip.generation.config import DecodeConfig
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.protocols import Adapter
from openblip.tasks.retrieval import evaluate_retrieval

__all__ = ["GREEDY", "measure_blip", "written_truth"]

GREEDY = DecodeConfig(max_new_tokens=36)
_TOKENS = 40


def written_truth(
    adapter: Adapter, source: SourceConfig, samples: int, decode: DecodeConfig = GREEDY
) -> dict[str, Any]:
    """`caption_report` of the captions written for the first `samples` images of `source`."""
    captions, scenes, model = [], [], adapter.need("caption")
    for batch in _batches(adapter, source, samples):
        memory = model.remember(model.encode(batch.images))
        captions += [found[0].text for found in model.generate(memory, decode, [""] * len(batch))]
        scenes += [scene_from_meta(meta) for meta in batch.meta]
    return caption_report(captions, scenes)


def measure_blip(adapter: Adapter, source: SourceConfig, samples: int, *, rerank_k: int = 16) -> dict[str, Any]:
    """Metrics of the parts that the model has: truth of greedy captions; recall by ITC and ITM, ITM accuracy.

    Args:
        source: images with the scene in `meta`.
        samples: images that are read, from the first.
        rerank_k: candidates of each query that ITM reads.
    """
    found: dict[str, Any] = {}
    if "caption" in adapter.can:
        found |= written_truth(adapter, source, samples)
    if "match" in adapter.can:
        batches = _batches(adapter, source, samples)
        found |= evaluate_retrieval(adapter.need("match"), batches, rerank_k=rerank_k, max_length=_TOKENS)
    return found


def _batches(adapter: Adapter, source: SourceConfig, samples: int) -> Iterator[Batch]:
    return evaluation_batches((source,), adapter.image_size, samples=samples, batch_size=100, clean="simplify")
