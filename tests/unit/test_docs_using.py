"""docs/using.md and docs/checkpoints.md: every Python example runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.checkpoints import blip_store
from openblip.checkpoints.store import StoredModel, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig, blip_config
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.vqa import BlipVqa, VqaConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"
WORDS = ("a red circle", "two dogs and a cat", "what color is the circle?", "is there a circle?", "yes no")


def fenced(page: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images and two small models, and the working directory."""
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train(list(WORDS) * 3, vocab_size=100)
    sizes = blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=32)
    save_model(tmp_path / "runs" / "first" / "model", StoredModel(Blip(sizes), tokenizer))
    save_model(
        tmp_path / "models" / "vqa",
        StoredModel(BlipVqa(VqaConfig(vision=sizes.vision, text=sizes.text)), tokenizer),
    )
    vision = VisionConfig(image_size=32, width=64, depth=2, num_heads=1)  # as other formats have it: heads of 64
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=64, depth=2, num_heads=1, inner_width=128, memory_width=64
    )
    save_model(
        tmp_path / "models" / "published", StoredModel(Blip(BlipConfig(vision=vision, text=text)), tokenizer)
    )
    monkeypatch.setattr(blip_store, "PUBLISHED_TOKENIZER", str(tmp_path / "models" / "published"))
    (tmp_path / "photos").mkdir()
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"000{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "count"), [("using.md", 9), ("checkpoints.md", 4)])
def test_examples_run(page: str, count: int, place: Path) -> None:
    blocks = fenced(page, "python")
    assert len(blocks) == count
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/{page}, example {number}", "exec"), names)
    if page == "using.md":
        assert (place / "where.png").stat().st_size > 1000
        # Two rows of one batch: a product may sum them in another order.
        torch.testing.assert_close(names["same"][0], names["same"][1])  # type: ignore[index]
        assert len(names["texts"][0]) == 3  # type: ignore[index]
