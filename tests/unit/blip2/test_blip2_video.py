"""BLIP-2 reads the tokens of all frames of a video as one memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_blip2
import torch

from openblip.core.errors import UserError
from openblip.data.sources import open_source
from openblip.tasks.features import cache_features


@torch.no_grad()
def test_queries_read_all_frames_and_one_frame_is_its_image() -> None:
    model = small_blip2.model().eval()
    side = small_blip2.PIXELS
    videos = torch.randint(0, 256, (2, 3, 3, side, side), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    each = [model.encode_pixels(videos[:, k]) for k in range(3)]
    embeds = model.encode_pixels(videos)
    torch.testing.assert_close(embeds, torch.cat(each, dim=1), atol=1e-5, rtol=0)
    first = model.read_image(model.remember(each[0]))
    same = model.read_image(model.remember(torch.cat((each[0], each[0]), dim=1)))
    torch.testing.assert_close(same, first, atol=1e-4, rtol=0)
    assert (model.read_image(model.remember(embeds)) - first).abs().max() > 1e-3


def test_features_of_videos_are_not_cached(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not read before it is refused")
    with pytest.raises(UserError, match="features of videos are not kept on disk"):
        cache_features([open_source(str(tmp_path))], small_blip2.model().vision, tmp_path / "features")
