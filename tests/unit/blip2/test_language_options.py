"""Language models with LoRA, and in eight or four bits: what is trained, saved, exported, refused."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_blip2 import PIXELS, Kind, images, model, write_language
from test_run import TRAIN, losses
from test_store import numbers, stored
from torch import Tensor

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.generation.config import DecodeConfig
from openblip.models.configs import LanguageConfig, TowerConfig
from openblip.models.language import FrozenLanguage, make_language
from openblip.recipes.blip2 import blip2_caption
from openblip.tasks.registry import FAMILIES
from openblip.tasks.training import run_training

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the same sums of float32 in another order"""
DATA = (f"world:train?n=8&size={PIXELS}",)
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason='peft is not installed (pip install "openblip[lora]")'
)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason='bitsandbytes is not installed (pip install "openblip[quantize]")',
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wide enough for blocks of 64 numbers, and so calm that rounding does not blow up."""
    return {
        kind: write_language(tmp_path_factory.mktemp(kind), kind, width=64, scale=0.1) for kind in get_args(Kind)
    }


def logits(language: FrozenLanguage, folder: Path, soft: Tensor | None = None) -> Tensor:
    text = LanguageTokenizer.load(folder).texts(["a red bus", "two dogs", "the road"])
    if soft is None:
        soft = torch.randn(3, 4, language.width, generator=torch.Generator().manual_seed(1))
    if language.is_encoder_decoder:
        return language.target_logits(*language.encode(soft, text.input_ids, text.attention_mask), text.input_ids)
    return language.decoder_logits(soft, text.input_ids, text.attention_mask)


def trained_lora(folder: Path, **changes: Any) -> FrozenLanguage:
    """LoRA with numbers that show."""
    language = make_language(LanguageConfig(source=str(folder), lora_rank=2, **changes))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in language.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return language


@needs_peft
@pytest.mark.parametrize("kind", get_args(Kind))
def test_lora_alone_learns(folders: dict[str, Path], kind: str) -> None:
    language = make_language(LanguageConfig(source=str(folders[kind]), lora_rank=4)).train()
    assert not any(part.training for part in language.modules() if part is not language)
    before = {name: value.detach().clone() for name, value in language.named_parameters()}
    torch.testing.assert_close(
        logits(language, folders[kind]),
        logits(make_language(LanguageConfig(source=str(folders[kind]))), folders[kind]),
    )
    trained = [value for value in language.parameters() if value.requires_grad]
    assert 0 < sum(value.numel() for value in trained) < 0.2 * sum(value.numel() for value in language.parameters())
    optimizer, found = torch.optim.AdamW(trained, lr=3e-2), []
    for _ in range(8):
        scores = logits(language, folders[kind])
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), torch.full((scores[..., 0].numel(),), 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.7 * found[0]
    for name, value in language.named_parameters():
        assert ("lora_" in name) == value.requires_grad == (not torch.equal(value, before[name])), name


@needs_peft
@torch.no_grad()
@pytest.mark.parametrize("kind", get_args(Kind))
def test_lora_merged_is_the_same_model(folders: dict[str, Path], kind: str) -> None:
    language = trained_lora(folders[kind])
    plain = make_language(LanguageConfig(source=str(folders[kind])))
    learned, without = logits(language, folders[kind]), logits(plain, folders[kind])
    assert (learned - without).abs().max() > 0.1
    for merged, expected in ((True, learned), (False, without)):
        _, state = language.plain(merged=merged)
        plain.hf.load_state_dict(state)
        torch.testing.assert_close(logits(plain, folders[kind]), expected, **CLOSE)


@needs_peft
def test_lora_in_bfloat16_is_kept_in_float32(folders: dict[str, Path]) -> None:
    language = make_language(LanguageConfig(source=str(folders["llama"]), dtype="bfloat16", lora_rank=2))
    assert {value.dtype for value in language.parameters() if value.requires_grad} == {torch.float32}
    assert {value.dtype for value in language.parameters() if not value.requires_grad} == {torch.bfloat16}
    assert logits(language, folders["llama"]).isfinite().all()


@needs_peft
def test_lora_goes_where_it_is_reported(folders: dict[str, Path]) -> None:
    config = LanguageConfig(source=str(folders["opt"]), lora_rank=2, lora_targets=("fc1",))
    names = [name for name, value in make_language(config).named_parameters() if value.requires_grad]
    assert names
    assert all(".fc1." in name for name in names)
    with pytest.raises(UserError, match=r"name them: language\.lora_targets"):
        make_language(replace(config, lora_targets=("no_such_layer",)))


def stage2(folder: Path, llm: Path) -> StoredModel:
    made = model(language=llm, matches=False, qformer={"vocab_size": None}, vision_norm_eps=1e-6)
    found = stored(made, llm)
    save_model(folder, found)
    return found


@needs_peft
@torch.no_grad()
def test_models_with_lora_on_disk(folders: dict[str, Path], tmp_path: Path) -> None:
    found = stage2(tmp_path / "plain", folders["llama"])
    found.model.language = trained_lora(folders["llama"])
    found.model.config = replace(found.model.config, language=found.model.llm.config)
    expected = numbers(found.model)
    save_model(tmp_path / "m", found)
    names = set(load_file(tmp_path / "m" / "model.safetensors"))
    assert all(".lora_" in name for name in names if name.startswith("language."))
    assert any(name.startswith("language.") for name in names)
    torch.testing.assert_close(numbers(open_model(tmp_path / "m").model), expected)
    convert_model(found, tmp_path / "whole", to="openblip")
    assert not any("lora" in key for key in load_file(tmp_path / "whole" / "language" / "model.safetensors"))
    torch.testing.assert_close(numbers(open_model(tmp_path / "whole").model), expected)
    convert_model(found, tmp_path / "theirs", to="transformers")
    torch.testing.assert_close(numbers(open_model(tmp_path / "theirs").model), expected, **CLOSE)
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "theirs")
    assert not any("lora" in name for name, _ in theirs.named_parameters())
    with pytest.raises(UserError, match="no place for LoRA"):
        convert_model(found, tmp_path / "m.pth", to="blip")


@needs_peft
def test_captions_are_fine_tuned_with_lora_and_an_unfrozen_tower(folders: dict[str, Path], tmp_path: Path) -> None:
    """From a model of stage 2 without LoRA; a run that resumes is the unbroken one."""
    begun = stage2(tmp_path / "m", folders["opt"]).model
    config = blip2_caption(DATA, model=str(tmp_path / "m"), validation=DATA)
    settings = {"layer_decay": 0.9, "gradient_checkpointing": 1.0, "max_steps": 4}
    config = replace(
        config, vision=TowerConfig(), batch_size=4, num_workers=0, validation_samples=2,
        train=replace(TRAIN, **settings), decode=DecodeConfig(max_new_tokens=3),
    )  # fmt: skip
    config = override(config, ["language.lora_rank=2"])
    run_training(config, tmp_path / "r", show=False)
    ended = open_model(tmp_path / "r" / "model").model
    assert ended.llm.config.lora_rank == 2
    assert ended.llm.config.source == str(folders["opt"])
    moved = {name for name, value in ended.named_parameters() if "lora_B" in name and value.abs().sum() > 0}
    assert len(moved) == 4  # queries and values of two layers
    vision = dict(begun.vision.named_parameters())
    assert any(not torch.equal(value, vision[name]) for name, value in ended.vision.named_parameters())
    again = replace(config, model=str(tmp_path / "r" / "model"))
    FAMILIES["blip2"].build(again, [], tmp_path)
    with pytest.raises(UserError, match=r"has LoRA and keeps it \(lora_rank = 2, .* leave language\.lora_rank out"):
        FAMILIES["blip2"].build(override(again, ["language.lora_rank=4"]), [], tmp_path)
    run_training(replace(config, train=replace(config.train, max_steps=2)), tmp_path / "cut", show=False)
    run_training(config, tmp_path / "cut", resume=True, show=False)
    assert losses(tmp_path / "cut") == losses(tmp_path / "r")


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_fewer_bits(folders: dict[str, Path], kind: str, bits: Any) -> None:
    """Nearly the same logits, and a gradient for the soft prompts that points where the whole model's does."""
    found = []
    for quantize in ("none", bits):
        language = make_language(LanguageConfig(source=str(folders[kind]), quantize=quantize)).train()
        soft = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        scores = logits(language, folders[kind], soft)
        scores.logsumexp(-1).sum().backward()
        assert soft.grad is not None
        found.append((scores.detach().flatten(), soft.grad.flatten()))
        assert all(value.grad is None for value in language.parameters())
    matrices = [value for value in language.parameters() if not value.is_floating_point()]
    assert len(matrices) >= 12
    (scores, gradient), (whole_scores, whole_gradient) = found[1], found[0]
    logits_close, gradients_close = {"8bit": (0.99, 0.95), "4bit": (0.9, 0.6)}[bits]
    assert torch.cosine_similarity(scores, whole_scores, dim=0) > logits_close
    assert torch.cosine_similarity(gradient, whole_gradient, dim=0) > gradients_close


@needs_bitsandbytes
@torch.no_grad()
def test_models_quantized_on_disk(folders: dict[str, Path], tmp_path: Path) -> None:
    found = stage2(tmp_path / "plain", folders["opt"])
    found.model.language = make_language(LanguageConfig(source=str(folders["opt"]), quantize="4bit"))
    found.model.config = replace(found.model.config, language=found.model.llm.config)
    expected = numbers(found.model)  # the matrices are packed for the CPU now
    save_model(tmp_path / "m", found)
    again = open_model(tmp_path / "m")
    torch.testing.assert_close(numbers(again.model), expected)
    with pytest.raises(UserError, match="not written whole"):
        convert_model(found, tmp_path / "whole", to="openblip")
    with pytest.raises(UserError, match="cannot be exported"):
        convert_model(found, tmp_path / "theirs", to="transformers")


@needs_peft
@needs_bitsandbytes
def test_lora_beside_four_bits_is_fine_tuned(folders: dict[str, Path], tmp_path: Path) -> None:
    stage2(tmp_path / "m", folders["opt"])
    config = blip2_caption(DATA, model=str(tmp_path / "m"))
    config = replace(config, vision=TowerConfig(), batch_size=4, num_workers=0, train=replace(TRAIN, max_steps=2))
    config = override(config, ["unfreeze_vision=false", "language.lora_rank=2", "language.quantize=4bit"])
    run_training(config, tmp_path / "r", show=False)
    ended = open_model(tmp_path / "r" / "model").model
    assert ended.llm.config.quantize == "4bit"
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in ended.named_parameters())
    soft = ended.soft_prompt(ended.remember(ended.encode_image(images())))
    assert logits(ended.llm, folders["opt"], soft).isfinite().all()


@pytest.mark.parametrize(
    ("package", "extra", "settings"),
    [
        ("peft", "lora", {"lora_rank": 4}),
        ("bitsandbytes", "quantize", {"quantize": "4bit"}),
        ("bitsandbytes", "quantize", {"quantize": "8bit"}),
    ],
)
def test_a_missing_extra_is_named(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, package: str, extra: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed.*openblip\[{extra}\]"):
        make_language(LanguageConfig(source=str(folders["opt"]), **settings))
