"""ONNX graphs of BLIP-2's stage 1, run by onnxruntime: the same numbers as torch's, over towers of each kind."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from small_blip2 import make_image, model, tokenizer, write_language
from test_store import clip, over, stored

from openblip.checkpoints.convert import convert_model
from openblip.core.errors import UserError
from openblip.models.blip2 import Blip2
from openblip.models.configs import as_tower

__all__ = ["clip"]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""the products of another library sum in another order"""


def run(folder: Path, name: str, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    given = session.run(None, {key: np.asarray(value) for key, value in inputs.items()})
    return dict(zip((port.name for port in session.get_outputs()), given, strict=True))


@pytest.fixture(scope="module")
def made(clip: Path) -> Blip2:
    """Over a tower of transformers that is kept in half precision."""
    return over(replace(as_tower(f"hf:{clip}"), dtype="bfloat16"), 32, depth=3)


@pytest.fixture(scope="module")
def folder(made: Blip2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = convert_model(stored(made), tmp_path_factory.mktemp("onnx") / "graphs", to="onnx")
    assert made.vision.dtype == torch.bfloat16, "the model itself is left as it is"
    made.float()  # what was kept in half precision is exact in float32
    return written


@pytest.mark.slow
@torch.no_grad()
def test_graphs_compute_the_same(made: Blip2, folder: Path) -> None:
    assert {path.stem for path in folder.glob("*.onnx")} == {"image", "text", "match"}
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, *made.vision.pixels), dtype=torch.uint8, generator=generator)
    words = tokenizer().encode(["a red bus", "two dogs", "a cat on a red chair", "the road"])
    ids, mask = words.input_ids, words.attention_mask
    memory = made.remember(made.encode_pixels(pixels))
    features, texts = made.image_features(made.read_image(memory)), made.text_features(ids, mask)
    seen = run(folder, "image", {"pixels": pixels})
    np.testing.assert_allclose(seen.pop("image_features"), features.numpy(), **CLOSE)
    given = {"input_ids": ids, "attention_mask": mask.long()}
    np.testing.assert_allclose(run(folder, "text", given)["text_features"], texts.numpy(), **CLOSE)
    logits = run(folder, "match", given | seen)["itm_logits"]
    np.testing.assert_allclose(logits, made.match(ids, mask, memory).numpy(), **CLOSE)
    assert logits.std() > 1e-3, "texts and images differ"


@pytest.mark.slow
@torch.no_grad()
def test_the_program_of_the_readme_ranks_as_ours(
    made: Blip2, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    assert config["temperature"] == pytest.approx(float(made.temperature))
    assert f"LAYER goes from 0 to {len(made.remember(torch.zeros(1, 17, 32)).keys) - 1}" in readme
    (code,) = re.findall(r"^```python\n(.*?)^```", readme, flags=re.S | re.M)
    make_image(0).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)), names)
    height, width = made.vision.pixels
    shown = Image.open("photo.jpg").convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(shown).transpose(2, 0, 1)[None].copy())
    words = tokenizer().encode(["a red bus", "two dogs"])
    memory = made.remember(made.encode_pixels(pixels))
    similar = made.image_features(made.read_image(memory)) @ made.text_features(*_of(words)).T
    np.testing.assert_allclose(names["similarities"], similar.amax(1).numpy(), **CLOSE)
    np.testing.assert_allclose(names["matched"], made.match(*_of(words), memory).softmax(1)[:, 1].numpy(), **CLOSE)


def _of(words: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return words.input_ids, words.attention_mask


def test_one_with_a_language_model_is_refused(tmp_path: Path) -> None:
    llm = write_language(tmp_path / "llm", "opt")
    found = stored(model(language=llm, matches=False, qformer={"vocab_size": None}), llm)
    with pytest.raises(UserError, match="BLIP-2 models of stage 1; this is a BLIP-2 model"):
        convert_model(found, tmp_path / "graphs", to="onnx")
