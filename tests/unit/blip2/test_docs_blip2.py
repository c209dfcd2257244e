"""docs/blip2.md: its settings exist, its Python runs, its figures are those computed."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import load_file
from small_blip2 import make_image, model, write_language
from test_store import stored

from benchmarks import blip2_memory
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import save_model
from openblip.core.config import override
from openblip.recipes.blip2 import blip2_caption, blip2_stage1, blip2_stage2

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "blip2.md").read_text(encoding="utf-8")
FLAT = " ".join(PAGE.split())


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def test_its_settings_exist() -> None:
    config = blip2_stage2(("captions.jsonl",), model="m")
    named = set(re.findall(r"`((?:language|vision|train)\.\w+)`", PAGE))
    assert len(named) >= 7
    for name in named:
        owner, _, setting = name.partition(".")
        assert hasattr(getattr(config, owner), setting), name
    assert override(config, ["batch_size=64", "vision.dtype=bfloat16", "text_pretrained=f"]).batch_size == 64
    assert f"a batch of {blip2_stage1(('a',)).batch_size} images each in stage 1" in FLAT
    assert f"and {config.batch_size} in stage 2" in FLAT
    caption = blip2_caption(("a",), model="m")
    assert caption.train.layer_decay == 1
    assert "The vision encoder is trained too, at one learning rate" in FLAT


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images, a language model, and a model of each stage."""
    folder = tmp_path_factory.mktemp("docs")
    llm = write_language(folder / "models" / "llm", "opt")
    writer = model(language=llm, matches=False, qformer={"vocab_size": None}, vision_norm_eps=1e-6)
    save_model(folder / "models" / "stage2", stored(writer, llm))
    save_model(folder / "models" / "stage1", stored(model()))
    (folder / "photos").mkdir()
    for number in (1, 2):
        make_image(number).save(folder / "photos" / f"000{number}.png")
    return folder


def test_its_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python"), 1):
        if "vllm" not in block:
            exec(compile(block, f"docs/blip2.md, example {number}", "exec"), names)
    assert [len(row) for row in names["ranked"]] == [1, 1]
    assert names["vectors"].shape == (2, 4, 16)
    assert names["similar"].shape == (2, 2)
    assert names["queries"].shape == names["both"].shape == (2, 4, 32)
    ours, theirs = names["stored"].model, names["again"].model
    assert torch.equal(ours.qformer.queries, theirs.qformer.queries)
    assert names["moved"].model.config.language.source == "models/llm"
    assert names["written"].shape[0] == 1


def test_what_vllm_reads_is_there(place: Path) -> None:
    """The names that vLLM's class for BLIP-2 loads, the image token that it looks for, and the template."""
    folder = place / "served"
    if not folder.exists():
        from openblip.checkpoints.store import open_model

        convert_model(open_model(place / "models" / "stage2"), folder, to="transformers")
    names = set(load_file(folder / "model.safetensors"))
    prefixes = ("vision_model.", "query_tokens", "qformer.", "language_projection.", "language_model.")
    assert all(name.startswith(prefixes) for name in names)
    for name in (
        "query_tokens",
        "qformer.layernorm.weight",
        "qformer.encoder.layer.0.attention.attention.query.weight",
        "qformer.encoder.layer.0.crossattention.attention.key.weight",
        "qformer.encoder.layer.0.intermediate_query.dense.weight",
        "vision_model.embeddings.class_embedding",
        "vision_model.encoder.layers.0.self_attn.qkv.weight",
        "vision_model.post_layernorm.weight",
        "language_projection.bias",
        "language_model.model.decoder.embed_tokens.weight",
    ):
        assert name in names
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_query_tokens"], config["vision_config"]["image_size"]) == (4, 32)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    image = next(token for token in tokenizer["added_tokens"] if token["content"] == "<image>")
    assert image["id"] == config["image_token_index"]
    (template,) = blocks("jinja")
    messages = [{"role": "user", "content": "what is this?"}]
    told = jinja2.Template(template).render(messages=messages)
    assert told.strip() == "Question: what is this? Answer:"
    (code,) = [block for block in blocks("python") if "vllm" in block]
    assert told.strip() in code
    ast.parse(code)


def test_its_figures_are_those_computed() -> None:
    result = json.loads(blip2_memory.STORED.read_text(encoding="utf-8"))
    assert "\n".join(blip2_memory.table(result)) in PAGE
    assert "\n".join(blip2_memory.table(result, "today")) in PAGE
    for row in result["today"]:
        assert f"| {row['each_tflop']:.2f} |" in PAGE
    assert result["tokens"] == blip2_memory.TOKENS == 32
    assert f"{blip2_memory.RESERVE:.0f} GiB of the card are left" in FLAT
    rows = {row["case"]: row for row in result["rows"]}
    first = rows["stage 1"]
    assert first["trained_parameters"] == 186_705_470  # 186,704,701 and [DEC]'s row and bias
    count = first["trained_parameters"]
    assert f"trains {count / 1e6:.1f}M parameters" in FLAT
    assert f"projection {(count + 2560 * 769) / 1e6:.1f}M" in FLAT
    at_128 = first["peak_gib"]["32"] + (first["peak_gib"]["256"] - first["peak_gib"]["32"]) * 96 / 224
    assert f"{at_128:.1f} GiB by this arithmetic" in FLAT


@pytest.mark.slow
def test_its_figures_can_be_computed_again() -> None:
    """The row that costs least, for one of the two batches."""
    result = json.loads(blip2_memory.STORED.read_text(encoding="utf-8"))
    case = next(
        case for case in blip2_memory.cases(blip2_memory.VISION, {}) if case.name == "stage 1, from features"
    )
    found = case.memory(32)
    row = next(row for row in result["rows"] if row["case"] == case.name)
    assert found.peak / blip2_memory.GIB == pytest.approx(row["peak_gib"]["32"], rel=0.02)
    assert (found.trained_parameters, found.frozen_parameters) == (row["trained_parameters"], 0)
