"""Features of images of which some come again, in shards that different processes compute; also a command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "unit" / "blip2"))

import small_blip2  # noqa: E402

from openblip.core.sharing import sharing  # noqa: E402
from openblip.data.sample import BrokenSample, Sample  # noqa: E402
from openblip.data.sources.base import Source  # noqa: E402
from openblip.data.sources.digest import Digest  # noqa: E402
from openblip.models.tower import make_tower  # noqa: E402
from openblip.tasks.feature_files import bytes_of_image  # noqa: E402
from openblip.tasks.features import cache_features  # noqa: E402
from openblip.training import start  # noqa: E402

KEYS = "abacdb?aeecfgahd"
"""the image at each place; "?" cannot be read"""


class Images(Source):
    """An image for each letter of `KEYS`, the same for the same letter."""

    name = "images"

    def __len__(self) -> int:
        return len(KEYS)

    def __getitem__(self, index: int) -> Sample:
        key = KEYS[index]
        if key == "?":
            raise BrokenSample("missing", key, "it is not there")
        return Sample(key=key, images=(small_blip2.make_image(ord(key)),), texts=())

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        digest.add(KEYS[span.start : span.stop])


def main(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """features_toy.py OUT: two images in each shard."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    start("cpu")
    torch.manual_seed(0)
    tower = make_tower(small_blip2.config().vision)
    blank = torch.zeros(1, 3, *tower.pixels)
    each = bytes_of_image((1, *tower(blank).shape[1:]), "float32")
    with sharing():
        found = cache_features(
            [Images()], tower, Path(arguments[0]), batch_size=1, shard_mb=2 * each / 1e6, num_workers=0
        )
    assert (found.images, found.left_out) == (len(set(KEYS)) - 1, len(KEYS) - len(set(KEYS)) + 1)
