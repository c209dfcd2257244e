"""In which dtype, and in how many bits, a language model is opened, moved and trained behind."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import transformers
from small_blip2 import PIXELS, Kind, write_language
from test_language_options import DATA, logits, stage2
from test_run import TRAIN

import openblip
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, blip_config
from openblip.models.configs import LanguageConfig, TowerConfig
from openblip.models.language import make_language
from openblip.recipes.blip2 import blip2_caption
from openblip.tasks.training import run_training

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason='bitsandbytes is not installed (pip install "openblip[quantize]")',
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_language(tmp_path_factory.mktemp(kind), kind, width=64) for kind in get_args(Kind)}


@pytest.mark.parametrize("moved", [False, True], ids=["opened so", "moved"])
def test_rotary_frequencies_stay_in_float32(folders: dict[str, Path], *, moved: bool) -> None:
    """As transformers keeps them in a model that it reads in bfloat16; both then compute the same."""
    dtype = "float32" if moved else "bfloat16"
    language = make_language(LanguageConfig(source=str(folders["llama"]), dtype=dtype))
    if moved:
        language.to_dtype(torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.bfloat16)
    expected, tables = dict(theirs.named_buffers()), dict(language.hf.named_buffers())
    assert {value.dtype for value in language.parameters()} == {torch.bfloat16}
    assert any("inv_freq" in name for name in tables)
    for name, table in tables.items():
        assert table.dtype == torch.float32
        assert torch.equal(table, expected[name])
    ids = torch.arange(40)[None] % 30
    ours = language.decoder_logits(torch.zeros(1, 0, 64), ids, torch.ones_like(ids).bool())
    torch.testing.assert_close(ours, theirs(ids).logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_float16_is_trained_behind_in_bfloat16(folders: dict[str, Path], kind: Kind) -> None:
    """Its own dtype under any autocast, soft prompts joined with embeddings too."""
    language = make_language(LanguageConfig(source=str(folders[kind]), dtype="float16"))
    soft, ids = torch.linspace(-1, 1, 384).view(2, 3, 64), torch.tensor([[1, 5, 6], [1, 7, 8]])
    mask = torch.ones_like(ids).bool()

    def read() -> torch.Tensor:
        if language.is_encoder_decoder:
            return language.encode(soft, ids, mask)[0]
        return language.decoder_logits(soft, ids, mask)

    expected = read()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(read(), expected)
    assert expected.dtype == torch.float16


@pytest.mark.parametrize("moved", [False, True], ids=["opened so", "moved"])
def test_what_overflows_in_float16_stays_in_float32(folders: dict[str, Path], *, moved: bool) -> None:
    dtype = "float32" if moved else "float16"
    language = make_language(LanguageConfig(source=str(folders["t5"]), dtype=dtype))
    if moved:
        language.to_dtype(torch.float16)
    kinds = {name.endswith(".wo.weight"): value.dtype for name, value in language.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.float16}


def test_a_model_of_transformers_is_opened_in_the_dtype_it_computes_in(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    convert_model(stage2(tmp_path / "m", folders["opt"]), tmp_path / "hf", to="transformers")
    plain = open_model(tmp_path / "hf").model.llm
    assert (plain.dtype, plain.config.dtype) == (torch.float32, "float32")
    found = open_model(tmp_path / "hf", language_dtype="bfloat16").model
    assert found.llm.dtype == torch.bfloat16
    assert found.config.language is not None
    assert found.config.language.dtype == "bfloat16"
    predictor = openblip.load(tmp_path / "hf", device="cpu", dtype="bfloat16")
    assert predictor.model.llm.config.dtype == "bfloat16"
    # A model of ours is compared with what it was trained with first, and moved then.
    ours = openblip.load(tmp_path / "m", device="cpu", dtype="bfloat16")
    assert (ours.model.llm.dtype, ours.model.llm.config.dtype) == (torch.bfloat16, "float32")


@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_it_is_trained_behind_the_dtype_that_is_set(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    found = stage2(tmp_path / "ours", folders["opt"])
    if kind == "transformers":
        convert_model(found, tmp_path / kind, to="transformers")
    config = blip2_caption(DATA, model=str(tmp_path / kind))
    assert config.language.dtype == "auto"
    config = replace(config, vision=TowerConfig(), batch_size=4, num_workers=0, train=replace(TRAIN, max_steps=1))
    config = override(config, ["unfreeze_vision=false", "language.dtype=bfloat16"])
    run_training(config, tmp_path / "r", show=False)
    ended = open_model(tmp_path / "r" / "model").model
    assert (ended.llm.dtype, ended.llm.config.dtype) == (torch.bfloat16, "bfloat16")
    again = override(replace(config, model=str(tmp_path / "r" / "model")), ["language.dtype=float16"])
    with pytest.raises(UserError, match=r"is in bfloat16, as it was trained with; leave language\.dtype out"):
        run_training(again, tmp_path / "s", show=False)


@needs_bitsandbytes
def test_a_model_is_used_in_four_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    found = stage2(tmp_path / "ours", folders["opt"])
    convert_model(found, tmp_path / "hf", to="transformers")
    soft = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(2))
    expected = logits(found.model.llm, folders["opt"], soft).flatten()
    for name in ("ours", "hf"):
        model = openblip.load(tmp_path / name, device="cpu", dtype="float32", quantize="4bit").model
        assert model.llm.config.quantize == "4bit"
        matrices = [value for value in model.llm.parameters() if not value.is_floating_point()]
        assert len(matrices) >= 12
        close = torch.cosine_similarity(logits(model.llm, folders["opt"], soft).flatten(), expected, dim=0)
        assert 0.9 < close < 1
        half = openblip.load(tmp_path / name, device="cpu", dtype="bfloat16", quantize="4bit").model
        assert half.llm.dtype == torch.bfloat16
    with pytest.raises(UserError, match='quantize cannot be "3bit"'):
        openblip.load(tmp_path / "ours", quantize="3bit")  # type: ignore[arg-type]


def test_what_has_no_language_model_is_not_quantized(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.train(["a red bus"] * 3, vocab_size=60)
    blip = Blip(blip_config("nano", vocab_size=tokenizer.vocab_size, image_size=PIXELS))
    save_model(tmp_path / "m", StoredModel(blip, tokenizer))
    with pytest.raises(UserError, match="has no language model to quantize"):
        openblip.load(tmp_path / "m", quantize="8bit")
