"""ONNX graphs of BLIP VQA, run by onnxruntime: the same question memory, answer logits and answer as torch's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx_small import HEADS, LAYERS, SIDE, TEXTS, WIDTH, layers, pixels, run_graph, same, words
from PIL import Image

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel
from openblip.core.tokenizer import TextTokenizer
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.layers import KVCache
from openblip.models.stepper import DecoderStepper
from openblip.models.vqa import BlipVqa, VqaConfig

INNER = 40
"""width of the vision tower: another one than that of texts"""
QUESTION = "what color is the bus?"


@pytest.fixture(scope="module")
def stored() -> StoredModel:
    """A model whose weights are wide enough that every output depends on all that is read."""
    tokenizer = TextTokenizer.train([*TEXTS, QUESTION] * 3, vocab_size=90)
    vision = VisionConfig(image_size=SIDE, patch_size=8, width=INNER, depth=1, num_heads=2)
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, width=WIDTH, depth=LAYERS, num_heads=HEADS, inner_width=128,
        max_positions=40, memory_width=INNER,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BlipVqa(VqaConfig(vision=vision, text=text))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    return StoredModel(model.eval(), tokenizer, {})


@pytest.fixture(scope="module")
def folder(make_once: Callable[..., Path], stored: StoredModel) -> Path:
    return make_once("onnx-vqa", lambda place: convert_model(stored, place / "graphs", to="onnx")) / "graphs"


@pytest.mark.slow
@pytest.mark.parametrize(("images", "questions", "rows"), [(1, 1, 1), (2, 2, 6), (1, 3, 3), (2, 4, 8)])
@torch.no_grad()
def test_questions_are_read_and_answers_stepped_the_same(
    images: int, questions: int, rows: int, stored: StoredModel, folder: Path
) -> None:
    """[DEC] and a token, then one token, then two at once; every second question and answer is padded."""
    model = stored.model
    memory = model.remember(model.encode_pixels(pixels(images)))
    seen_image = run_graph(folder, "image", {"pixels": pixels(images)})
    for name, expected in layers("memory", memory).items():
        same(seen_image[name], expected, name)

    ids, mask = words(questions, 6, stored.tokenizer.enc_id)
    asked = model.remember_question(model.read_question(ids, mask, memory), mask)
    found = run_graph(folder, "question", {"input_ids": ids, "question_mask": mask.long(), **seen_image})
    real = mask[:, None, :, None].expand(questions, HEADS, 6, WIDTH // HEADS)
    for name, expected in layers("question", asked).items():
        same(torch.from_numpy(found[name])[real], expected[real], name)

    cache = KVCache()
    past: dict[str, Any] = {name: torch.zeros(rows, HEADS, 0, WIDTH // HEADS) for name in layers("past", asked)}
    seen = torch.zeros(rows, 0, dtype=torch.bool)
    for number, new in enumerate((2, 1, 2)):
        answer, answer_mask = words(rows, new, stored.tokenizer.dec_id)
        if number:
            answer_mask = torch.ones_like(answer_mask)
        seen = torch.cat((seen, answer_mask), dim=1)
        expected = model.text_decoder(answer, answer_mask, memory=asked, cache=cache)
        inputs = {"input_ids": answer, "attention_mask": seen.long(), "question_mask": mask.long(), **found, **past}
        given = run_graph(folder, "answer", inputs)
        same(torch.from_numpy(given.pop("logits"))[answer_mask], expected[answer_mask])
        past = {name.replace("present", "past"): value for name, value in given.items()}


@pytest.mark.slow
@torch.no_grad()
def test_padding_of_a_question_changes_no_answer(stored: StoredModel, folder: Path) -> None:
    seen = run_graph(folder, "image", {"pixels": pixels(1)})
    ids, mask = words(1, 5, stored.tokenizer.enc_id)
    logits = []
    for more in (0, 4):
        longer = torch.nn.functional.pad(ids, (0, more))
        of_question = torch.nn.functional.pad(mask.long(), (0, more))
        asked = run_graph(folder, "question", {"input_ids": longer, "question_mask": of_question, **seen})
        past = {
            name: torch.zeros(1, HEADS, 0, WIDTH // HEADS) for name in layers("past", KVCache([ids] * 2, [ids] * 2))
        }
        answer = {"input_ids": torch.tensor([[stored.tokenizer.dec_id]]), "attention_mask": torch.ones(1, 1).long()}
        given = run_graph(folder, "answer", {**answer, "question_mask": of_question, **asked, **past})
        logits.append(torch.from_numpy(given["logits"]))
    same(logits[1], logits[0])


@pytest.mark.slow
@torch.no_grad()
def test_the_program_in_its_readme_writes_our_answer(
    folder: Path, stored: StoredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pixels(1)[0].permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), flags=re.S | re.M)
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(folder)).replace("photo.jpg", "photo.png"), names)

    model, tokenizer = stored.model, stored.tokenizer
    question = tokenizer.encode([QUESTION], first="enc")
    memory = model.remember(model.encode_pixels(pixels(1)))
    states = model.read_question(question.input_ids, question.attention_mask, memory)
    decoded = decode(
        DecoderStepper(model.text_decoder, model.remember_question(states, question.attention_mask)),
        torch.tensor([[tokenizer.dec_id]]), None, DecodeConfig(num_beams=1, max_new_tokens=10),
        eos_ids=tokenizer.sep_id, pad_id=tokenizer.pad_id,
    )  # fmt: skip
    ours = [token for token in decoded.ids[0, : decoded.lengths[0]].tolist() if token != tokenizer.sep_id]
    assert names["written"] == ours
    assert len(ours) > 2


@pytest.mark.slow
def test_the_folder_tells_what_it_holds(folder: Path, stored: StoredModel) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert list(config["graphs"]) == ["image", "question", "answer"]
    assert "temperature" not in config
    for name in config["graphs"]:
        onnx.checker.check_model(folder / f"{name}.onnx")
    readme = (folder / "README.md").read_text()
    assert "| question | gives | `question.LAYER.key`, `.value` | float32 | questions, 2, words, 32 |" in readme
    own = sum(p.numel() * p.element_size() for p in stored.model.parameters())
    size = (folder / "weights.bin").stat().st_size
    assert 0.8 * own < size < own + 4096 * sum(1 for _ in stored.model.parameters())
