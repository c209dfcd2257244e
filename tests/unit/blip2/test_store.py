"""BLIP-2 on disk: the trained part and the names of the frozen ones, whole folders, LAVIS' files, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_blip2 import PIXELS, config, model, spread, tokenizer, write_language

from openblip.checkpoints.blip2 import lavis_state
from openblip.checkpoints.blip2_parts import build_blip2
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.models.blip import Blip, blip_config
from openblip.models.blip2 import Blip2
from openblip.models.configs import LanguageConfig, TowerConfig, as_tower


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("llm"), "opt")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language(tmp_path_factory.mktemp("t5"), "t5")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip") / "model"
    words = tokenizer()
    torch.manual_seed(0)
    save_model(
        folder, StoredModel(Blip(blip_config("nano", vocab_size=words.vocab_size, image_size=PIXELS)), words)
    )
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("clip")
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    CLIPVisionModel(
        CLIPVisionConfig(num_hidden_layers=3, image_size=PIXELS, patch_size=8, **sizes)
    ).save_pretrained(folder)
    return folder


def over(tower: TowerConfig, memory_width: int, language: LanguageConfig | None = None, **sizes: Any) -> Blip2:
    """A model over another tower, `memory_width` wide."""
    made_of = config(language=language, matches=language is None, qformer={"memory_width": memory_width, **sizes})
    made = build_blip2(replace(made_of, vision=tower))
    torch.manual_seed(1)
    for name, part in made.named_children():
        if name not in ("vision", "language"):
            spread(part, 0.2)
    return made.eval()


def stored(made: Blip2, llm: Path | None = None) -> StoredModel:
    language_tokenizer = None if llm is None else LanguageTokenizer.load(llm)
    has_text = made.config.qformer.vocab_size is not None
    return StoredModel(made, tokenizer() if has_text else None, {"prompt": "a photo of"}, [], language_tokenizer)


@torch.no_grad()
def numbers(made: Blip2) -> torch.Tensor:
    memory = made.remember(
        made.encode_image(torch.randn(2, 3, *made.vision.pixels, generator=torch.Generator().manual_seed(0)))
    )
    if made.language is None:
        words = tokenizer().encode(["a red bus", "two dogs"])
        return torch.cat(
            (made.match(words.input_ids, words.attention_mask, memory).flatten(), made.temperature[None])
        )
    ids = torch.tensor([[1, 5, 6], [1, 7, 8]])
    return made.llm.decoder_logits(made.soft_prompt(memory), ids, torch.ones_like(ids).bool()).flatten()


def towers(blip: Path, clip: Path) -> list[tuple[TowerConfig, int]]:
    return [
        (as_tower(f"openblip:{blip}"), 64),
        (as_tower(f"openblip:{blip}@1"), 64),
        (as_tower(f"hf:{clip}"), 32),
    ]


def test_the_trained_part_alone_is_written(tmp_path: Path, llm: Path, blip: Path, clip: Path) -> None:
    for number, (tower, width) in enumerate(towers(blip, clip)):
        for language in (None,) if number else (None, LanguageConfig(source=str(llm))):
            made = over(tower, width, language)
            folder = tmp_path / f"{number}-{language is not None}"
            save_model(folder, stored(made, llm if language else None))
            names = set(load_file(folder / "model.safetensors"))
            assert not any(name.startswith(("vision.", "language.")) for name in names)
            info = json.loads((folder / "config.json").read_text())["frozen"]
            assert info["vision"]["source"] == tower.source
            assert len(info["vision"]["fingerprint"]) == 32
            assert ("language" in info) == (language is not None)
            found = open_model(folder)
            assert isinstance(found.model, Blip2)
            assert found.info == {"prompt": "a photo of"}
            assert torch.equal(numbers(found.model), numbers(made))
            assert found.model.frozen_parameter_names() == made.frozen_parameter_names()
            assert (found.language_tokenizer is not None) == (language is not None)


def test_frozen_parts_named_by_a_relative_path_are_found_from_anywhere(
    tmp_path: Path, llm: Path, blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    shutil.copytree(blip, project / "runs" / "first" / "model")
    shutil.copytree(llm, project / "runs" / "llm")
    monkeypatch.chdir(project)
    tower, language = as_tower("openblip:runs/first/model"), LanguageConfig(source="runs/llm")
    made = over(tower, 64, language)
    save_model("runs/second/model", stored(made, llm))
    monkeypatch.chdir(tmp_path)
    found = open_model(project / "runs" / "second" / "model")
    assert torch.equal(numbers(found.model), numbers(made))
    assert found.model.config == made.config
    # What lies where one stands comes first, and its fingerprint tells that it is another.
    torch.manual_seed(9)
    other = Blip(blip_config("nano", vocab_size=tokenizer().vocab_size, image_size=PIXELS))
    save_model(tmp_path / "runs" / "first" / "model", StoredModel(other, tokenizer()))
    with pytest.raises(UserError, match="vision tower from openblip:runs/first/model is not the one"):
        open_model(project / "runs" / "second" / "model")


def test_a_whole_folder_needs_nothing_else(tmp_path: Path, blip: Path, clip: Path) -> None:
    for number, (tower, width) in enumerate(towers(blip, clip)):
        llm = write_language(tmp_path / f"llm{number}", "opt")
        towers_folder = tmp_path / f"tower{number}"
        shutil.copytree(tower.name, towers_folder)
        moved = as_tower(f"{tower.kind}:{towers_folder}@{tower.drop_layers or 0}")
        made = over(moved, width, LanguageConfig(source=str(llm)))
        save_model(tmp_path / f"whole{number}", stored(made, llm), whole=True)
        shutil.rmtree(llm)
        shutil.rmtree(towers_folder)
        (tmp_path / f"whole{number}").rename(tmp_path / f"moved{number}")
        found = open_model(tmp_path / f"moved{number}")
        assert torch.equal(numbers(found.model), numbers(made))
        assert found.language_tokenizer.decode([5, 6]) != ""  # type: ignore[attr-defined]


def test_a_full_disk_under_a_language_model_is_told(
    tmp_path: Path, llm: Path, blip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    made = over(as_tower(f"openblip:{blip}"), 64, LanguageConfig(source=str(llm)))
    with pytest.raises(UserError, match=r"the disk is full: .*/whole was not written"):
        save_model(tmp_path / "whole", stored(made, llm), whole=True)
    assert not (tmp_path / "whole").exists()


def test_a_tower_of_its_own_is_in_the_file(tmp_path: Path) -> None:
    made = model()
    save_model(tmp_path / "m", stored(made))
    assert any(name.startswith("vision.") for name in load_file(tmp_path / "m" / "model.safetensors"))
    assert torch.equal(numbers(open_model(tmp_path / "m").model), numbers(made))


def test_other_frozen_parts_are_refused(tmp_path: Path, llm: Path, blip: Path) -> None:
    made = over(as_tower(f"openblip:{blip}"), 64, LanguageConfig(source=str(llm)))
    save_model(tmp_path / "m", stored(made, llm))
    other = write_language(tmp_path / "other", "opt")
    state = load_file(other / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the language model from .*other is not the one .* trained with"):
        open_model(tmp_path / "m", language=str(other))
    words, folder = tokenizer(), tmp_path / "blip"
    torch.manual_seed(9)
    save_model(
        folder, StoredModel(Blip(blip_config("nano", vocab_size=words.vocab_size, image_size=PIXELS)), words)
    )
    with pytest.raises(UserError, match=r"the vision tower from .* is not the one"):
        open_model(tmp_path / "m", vision=f"openblip:{folder}")
    copy = shutil.copytree(blip, tmp_path / "copy")
    assert torch.equal(numbers(open_model(tmp_path / "m", vision=f"openblip:{copy}").model), numbers(made))


def test_damaged_folders_are_refused(tmp_path: Path, llm: Path) -> None:
    save_model(tmp_path / "m", stored(model()))
    file = tmp_path / "m" / "model.safetensors"
    state = load_file(file)
    for change, words in (
        ({"qformer.queries": None}, 'lacks "qformer.queries"'),
        ({"extra": torch.zeros(1)}, 'unexpected "extra"'),
        ({"qformer.queries": torch.zeros(1, 5, 32)}, r"has shape \(1, 5, 32\)"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        save_file(changed, file)
        with pytest.raises(UserError, match=words):
            open_model(tmp_path / "m")
    file.unlink()
    with pytest.raises(UserError, match="not saved whole"):
        open_model(tmp_path / "m")


@pytest.mark.parametrize("stage", [1, 2])
def test_files_of_lavis(tmp_path: Path, t5: Path, blip: Path, stage: int) -> None:
    """The trained part in LAVIS' names; the frozen parts by their own."""
    language = LanguageConfig(source=str(t5)) if stage == 2 else None
    # One head, since those of all published models are 64 channels wide and a file does not tell.
    sizes: dict[str, Any] = {"width": 64, "num_heads": 1}
    if stage == 2:
        sizes["vocab_size"] = None
    made = over(as_tower(f"openblip:{blip}@1"), 64, language, **sizes)
    if stage == 1:
        with torch.no_grad():
            made.temperature.fill_(0.03)
    state = lavis_state(made)
    assert ("temp" in state) == (stage == 1)
    assert not any(key.startswith("visual_encoder") for key in state)
    file = tmp_path / "blip2_pretrained.pth"
    torch.save({"model": state}, file)
    with pytest.raises(UserError, match=r"64 wide.*name it"):
        open_model(file, tokenizer=tokenizer())
    found = open_model(
        file, tokenizer=tokenizer(), vision=f"openblip:{blip}@1", language=None if language is None else str(t5)
    )
    assert found.info["source_format"] == "lavis"
    ours, theirs = dict(made.named_parameters()), dict(found.model.named_parameters())
    for name in set(ours) - made.frozen_parameter_names():
        assert torch.equal(ours[name], theirs[name]), name
    if stage == 1:
        assert float(found.model.temperature) == pytest.approx(0.03)
        assert found.tokenizer.vocab_size >= tokenizer().vocab_size
    else:
        assert found.tokenizer is None


def test_lavis_files_of_ours_tell_the_heads(tmp_path: Path, t5: Path, blip: Path) -> None:
    made = over(as_tower(f"openblip:{blip}@1"), 64, None, width=64, num_heads=4)
    stored = StoredModel(made, tokenizer())
    convert_model(stored, tmp_path / "a.pth", to="blip")
    tower = f"openblip:{blip}@1"
    found = open_model(tmp_path / "a.pth", tokenizer=tokenizer(), vision=tower)
    assert found.model.config.qformer.num_heads == 4
    torch.save({"model": lavis_state(made)}, tmp_path / "b.pth")
    named = open_model(tmp_path / "b.pth", tokenizer=tokenizer(), vision=tower, heads=(4,))
    assert named.model.config.qformer.num_heads == 4


def test_sources_of_towers() -> None:
    assert as_tower("timm:a").drop_layers is None  # settled by what the tower is
    assert (as_tower("hf:a@2").source, as_tower("hf:a@2").drop_layers) == ("hf:a", 2)
