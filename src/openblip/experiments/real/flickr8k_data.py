"""Flickr8k and the pretrained parts: where they lie, what is trained on, what is measured on.

The folder of the real data holds `flickr8k/` (images/, train.jsonl of 6,000 and val.jsonl of 1,000 photographs with
five captions each) and `parts/` (folders of transformers: a vision tower that never saw words, a BERT, and a
decoder that never saw images). Both are read from disk and are no part of the project.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from openblip.checkpoints.blip2_parts import open_tower
from openblip.core.errors import UserError
from openblip.data.measured import Measured
from openblip.data.sample import Batch
from openblip.data.source_config import SourceConfig
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.models.configs import TowerConfig, as_tower
from openblip.tasks.evaluation import FirstSamples
from openblip.tasks.feature_cache import DrawCrop, FeatureCache, describe_tower
from openblip.tasks.features import Crops, cache_features
from openblip.tasks.protocols import Adapter

__all__ = ["Flickr8kSettings", "Places", "unseen"]


@dataclass(frozen=True, kw_only=True)
class Flickr8kSettings:
    """Everything the experiments on Flickr8k depend on but the data and the seed."""

    vision: str = "dinov2-small"
    """folder in `parts`; also `text` and `language`"""
    text: str = "minilm-l6"
    language: str = "gemma-3-270m"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of the frozen parts"""
    image_size: int = 224
    """pixels that the tower reads; one that names a size itself reads that in BLIP-2"""
    crops: int = 2
    """views of each training image in the feature cache: 1 is the whole image alone"""
    max_length: int = 20
    """tokens of a caption in training"""
    train_images: int = 6000
    test_images: int = 1000
    """of `val`, on which everything is measured"""

    queries: int = 32
    dropout: float = 0.1
    """of the Q-Former"""
    embed_dim: int = 256
    batch_size: int = 128
    stage1_steps: int = 800
    stage1_rate: float = 5e-4
    itm_share: float = 0.125
    """of a batch's pairs, which ITM reads; with `itg_share`, ITC has most of the time and the most to learn"""
    itg_share: float = 0.25
    hard_share: float = 0.5
    """of ITM's negatives, drawn by similarity"""
    rerank_k: int = 10
    """candidates of each query that ITM reads"""

    variant_steps: int = 150
    """of each variant of stage 1, and of the whole one beside them"""
    variant_images: int = 300
    """of `val`, on which the variants are measured"""

    stage2_steps: int = 240
    stage2_batch: int = 32
    stage2_rate: float = 5e-4
    stage2_length: int = 24
    """tokens of a caption in stage 2, with those of the prompt"""
    prompt: str = "a photo of"
    """before every caption in stage 2, as in the paper's fine-tuning for captions"""
    looks: int = 5
    """evaluations of stage 2 while it learns"""
    look_images: int = 100

    blip_steps: int = 240
    blip_batch: int = 32
    blip_rate: float = 1e-4
    captioner_steps: int = 40

    questions: int = 120
    """at most of each kind"""
    threshold: float = 0.5
    """ITM probability from which CapFilt keeps a text"""
    gain_batch: int = 64
    """of `gain_steps`"""
    gain_steps: int = 60
    """on openstax's texts as they are and as CapFilt leaves them"""


@dataclass(frozen=True)
class Places:
    """Data and parts on disk, and the folder of the experiment."""

    data: Path
    out: Path
    config: Flickr8kSettings

    def part(self, name: str) -> Path:
        """The folder of a pretrained part.

        Raises:
            UserError: it is not there.
        """
        folder = self.data.parent / "parts" / name
        if not (folder / "config.json").is_file():
            raise UserError(f"there is no pretrained part {folder}; docs/real-data.md says how the parts are made")
        return folder.resolve()

    @property
    def tower(self) -> TowerConfig:
        """The frozen vision tower, all its blocks."""
        like = TowerConfig(dtype=self.config.dtype)
        return as_tower(f"hf:{self.part(self.config.vision)}@0", like)

    def source(self, split: str) -> SourceConfig:
        """Photographs of a split with all their captions."""
        return SourceConfig(
            path=str((self.data / f"{split}.jsonl").resolve()),
            name="flickr8k",
            text_column="captions",
            id_column="image_id",
        )

    def features(self, split: str) -> Path:
        """The folder of what the tower sees of a split, computed once for all seeds; `val` is seen whole."""
        return _features(self, split)


@cache  # the images are gone through, and the tower is opened, once in a process
def _features(places: Places, split: str) -> Path:
    config, folder = places.config, places.out / f"features-{split}"
    count = config.train_images if split == "train" else config.test_images
    source = FirstSamples(open_source(places.source(split)), count)
    # Captions speak of left and right now and then: nothing is mirrored.
    crops = Crops(count=config.crops if split == "train" else 1, flip=False)
    cache_features([source], open_tower(places.tower), folder, crops=crops, batch_size=32)
    return folder


def unseen(places: Places, adapter: Adapter, *, samples: int) -> Iterator[Batch]:
    """The first photographs of `val` with all their captions; `images` are features [B, N, Dv] of the tower.

    A BLIP-2 model takes these in place of pixels.
    """
    features = FeatureCache.open([places.features("val")], describe_tower(adapter.model.vision))
    source = features.source(FirstSamples(open_source(places.source("val")), samples))
    loader = Loader(
        [source], DrawCrop(), 50, shuffle=False, drop_last=False, text_mode="all", clean="simplify", max_words=None,
        leave_out=True, skip_log=Measured(),
    )  # fmt: skip
    for batch in loader:
        yield replace(batch, images=features.read(batch.meta))
    loader.close()
