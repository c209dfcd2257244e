"""The benchmarks of using a model: both sides compute the same, on the same weights, before anything is timed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import caption, match, onnx_runtime, published, rank, rerank
from benchmarks.reference_path import pad_to, repeated_readers
from openblip.checkpoints.convert import Format
from openblip.core.tokenizer import TokenBatch
from openblip.models.blip import Blip, blip_config

SIDES: dict[str, tuple[Callable[[bool], Any], tuple[Format, ...], tuple[str, ...]]] = {
    "match": (published.matcher, (), match.CASES),
    "caption": (published.captioner, (), ("4 images",)),
    "rank": (published.vqa, (), ("128 answers",)),
    "rerank": (published.matcher, (), ("128 texts of an image",)),
    "onnx_runtime": (published.both, ("openblip", "onnx"), onnx_runtime.CASES),
}
"""a module: its model, the formats that it is written in, its cases"""


@pytest.fixture(autouse=True)
def _gradients() -> Any:
    """`build` switches gradients off for its process."""
    yield
    torch.set_grad_enabled(True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIDES)
def test_both_sides_compute_the_same(name: str) -> None:
    model, formats, cases = SIDES[name]
    module = importlib.import_module(f"benchmarks.{name}")
    with published.published(model(True), *formats):
        for case in cases:
            ours, theirs = (module.build(case, side, "float32", True).outputs() for side in ("ours", "peer"))
            assert ours.keys() == theirs.keys()
            # A similarity near zero is a sum of 256 products whose float32 rounding does not shrink with it.
            assert [ours[key] for key in ours] == pytest.approx([theirs[key] for key in ours], rel=1e-4, abs=5e-6)
            assert len(set(ours.values())) > len(ours) / 4, "the numbers depend on what is read"
    assert published.FOLDER not in os.environ


@pytest.mark.parametrize("dtype", rerank.TOLERANCES)
def test_reranking_is_compared_in_each_dtype(dtype: str) -> None:
    """What the peer computes for each pair of its own is what the image's one memory gives, padded or not."""
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    model = Blip(blip_config("micro", vocab_size=50, image_size=32)).eval().to(getattr(torch, dtype))
    lengths = torch.randint(2, 9, (16,))
    text = TokenBatch(torch.randint(0, 50, (16, 8)), torch.arange(8) < lengths[:, None])
    embeds = model.encode_pixels(torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8))
    ours = model.match(text.input_ids, text.attention_mask, model.remember(embeds)).float()
    padded = pad_to(text, 12)
    read = repeated_readers(model.encoder, padded.input_ids, padded.attention_mask, embeds)
    theirs = model.itm_head(read[:, 0]).float()
    assert read.dtype == getattr(torch, dtype)
    assert torch.allclose(ours.softmax(1), theirs.softmax(1), atol=rerank.TOLERANCES[dtype])


def test_what_is_measured_is_what_the_issue_asks_for() -> None:
    assert (match.TEXTS, match.TOKENS) == (32, 12)
    assert (caption.BATCH, caption.BEAMS, caption.NEW) == (4, 3, 20)
    assert rank.ANSWERS == 128
    assert (rerank.TEXTS, rerank.SHORTEST, rerank.LONGEST) == (128, 8, 16)
    with torch.device("meta"):
        vision = published.captioner(False).config.vision
    assert (vision.pixels, vision.width, vision.depth) == ((384, 384), 768, 12)


def test_the_whole_evaluation_is_predicted_from_the_rates() -> None:
    """(5,000 + 25,010) queries of 128 pairs each, read at 1 s for 128 pairs, and 5,000 images at 0.2 s."""
    told = rerank.predicted({"ours_s": 1.0, "peer_s": 10.0}, 0.2, k=128)
    assert told["coco_5k_pairs"] == 3_841_280
    assert told["coco_5k_ours"] == "8:36:50"
    assert told["coco_5k_peer"] == "83:38:20"
