"""Files of the original and LAVIS: heads that tensors do not tell, wrappers around tensors, files that are none."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.state import NOTES, read_state
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import LanguageConfig, TextConfig, VisionConfig
from openblip.models.language import make_language

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["a red bus", "two dogs"] * 3, vocab_size=50)


def small(tokenizer: TextTokenizer, width: int, heads: tuple[int, int], image_size: Any = 32) -> StoredModel:
    torch.manual_seed(0)
    config = BlipConfig(
        vision=VisionConfig(image_size=image_size, patch_size=16, width=width, depth=1, num_heads=heads[0]),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size, width=width, depth=1, num_heads=heads[1], inner_width=2 * width,
            max_positions=16, memory_width=width,
        ),
        embed_dim=8,
    )  # fmt: skip
    return StoredModel(Blip(config).eval(), tokenizer)


@torch.no_grad()
def computed(stored: StoredModel) -> Tensor:
    model = stored.blip
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    if model.config.vision.pixels != (32, 32):
        height, width = model.config.vision.pixels
        images = torch.linspace(-1, 1, 3 * height * width).reshape(1, 3, height, width)
    memory = model.remember(model.encode_image(images))
    ids = stored.tokenizer.encode(["a red bus"], first="dec").input_ids
    assert model.text_decoder is not None
    return torch.as_tensor(model.text_decoder(ids, memory=memory)).log_softmax(-1)


@pytest.mark.parametrize(
    ("width", "heads"), [(128, (4, 4)), (128, (8, 2)), (32, (4, 2)), (64, (1, 1)), (96, (3, 6))]
)
def test_the_number_of_heads_comes_back(
    width: int, heads: tuple[int, int], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    before = small(tokenizer, width, heads)
    convert_model(before, tmp_path / "a.pth", to="blip")
    after = open_model(tmp_path / "a.pth", tokenizer=tokenizer)
    assert (after.blip.config.vision.num_heads, after.blip.config.text.num_heads) == heads
    assert torch.equal(computed(before), computed(after))


@pytest.mark.parametrize("eps", [(1e-3, 1e-12), (1e-5, 1e-4)])
@pytest.mark.parametrize("to", ["blip", "transformers"])
def test_epsilons_come_back(to: Any, eps: tuple[float, float], tokenizer: TextTokenizer, tmp_path: Path) -> None:
    config = small(tokenizer, 64, (1, 1)).blip.config
    config = replace(
        config,
        vision=replace(config.vision, layer_norm_eps=eps[0]),
        text=replace(config.text, layer_norm_eps=eps[1]),
        encoder=False,
    )
    before = StoredModel(Blip(config).eval(), tokenizer)
    place = convert_model(before, tmp_path / "a.pth", to=to)
    after = open_model(place, tokenizer=tokenizer)
    assert (after.blip.config.vision.layer_norm_eps, after.blip.config.text.layer_norm_eps) == eps
    assert torch.equal(computed(before), computed(after))


def test_sides_that_differ_come_back(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    before = small(tokenizer, 32, (4, 2), image_size=(32, 128))
    convert_model(before, tmp_path / "a.pth", to="blip")
    after = open_model(tmp_path / "a.pth", tokenizer=tokenizer)
    assert after.blip.config.vision.pixels == (32, 128)
    assert torch.equal(computed(before), computed(after))
    assert open_model(tmp_path / "a.pth", tokenizer=tokenizer, image_size=64).blip.config.vision.grid == (4, 4)


def test_the_originals_loader_finds_what_it_reads(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    convert_model(small(tokenizer, 32, (4, 2)), tmp_path / "a.pth", to="blip")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert set(loaded) == {"model", NOTES}
    assert all(isinstance(value, Tensor) for value in loaded["model"].values())
    assert loaded[NOTES] == {"text_heads": 2, "vision_heads": 4, "image_size": [32, 32]}


def test_without_the_entry_heads_are_refused_named_or_reported(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    for width, heads in ((32, (4, 2)), (128, (4, 4))):
        before = small(tokenizer, width, heads)
        convert_model(before, tmp_path / f"with{width}.pth", to="blip")
        torch.save({"model": read_state(tmp_path / f"with{width}.pth")}, tmp_path / f"{width}.pth")
        named = open_model(tmp_path / f"{width}.pth", tokenizer=tokenizer, heads=heads)
        assert torch.equal(computed(before), computed(named))
    with pytest.raises(UserError, match=r"32\.pth does not say how many attention heads .* --heads 4"):
        open_model(tmp_path / "32.pth", tokenizer=tokenizer)
    taken = open_model(tmp_path / "128.pth", tokenizer=tokenizer)
    assert taken.blip.config.text.num_heads == 2
    assert "64 channels each" in taken.info["heads"]
    with pytest.raises(UserError, match="is not a multiple of 3 heads"):
        open_model(tmp_path / "32.pth", tokenizer=tokenizer, heads=(3,))


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}}},
    "state_dict": lambda s: {"state_dict": s},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "nested": lambda s: {"state_dict": {"model": s}},
    "module.": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "_orig_mod.": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "module._orig_mod.": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "_orig_mod.module.": lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    "inner _orig_mod.": lambda s: {
        k.replace("visual_encoder.", "visual_encoder._orig_mod."): v for k, v in s.items()
    },
    "fsdp": lambda s: {f"_fsdp_wrapped_module.{k}": v for k, v in s.items()},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "hyper_parameters": {}},
    "deep": lambda s: {"state_dict": {f"net.blip.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_are_taken_off(kind: str, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    before = small(tokenizer, 64, (1, 1))
    convert_model(before, tmp_path / "a.pth", to="blip")
    torch.save(WRAPPED[kind](read_state(tmp_path / "a.pth")), tmp_path / "b.pth")
    assert torch.equal(computed(before), computed(open_model(tmp_path / "b.pth", tokenizer=tokenizer)))


def test_endings_do_not_matter(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    before = small(tokenizer, 64, (1, 1))
    convert_model(before, tmp_path / "a.pth", to="blip")
    state = {k: v.clone() for k, v in read_state(tmp_path / "a.pth").items()}
    save_file(state, tmp_path / "a.bin")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.safetensors")
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.bin", "b.safetensors", "old.pt"):
        assert torch.equal(computed(before), computed(open_model(tmp_path / name, tokenizer=tokenizer))), name


NO_CHECKPOINTS = {
    "lfs": (LFS, "is a git-lfs pointer: run `git lfs pull`"),
    "html": (HTML, "is an HTML page"),
    "json": (b'{"error": "Repository not found"}', "is JSON text"),
    "text": (b"Entry not found", "is text"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(5000), "begins with zeros"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(90), "is a GGUF file"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(90), "is compressed by gzip"),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.safetensors"])
def test_what_is_no_checkpoint_is_named(kind: str, name: str, tmp_path: Path) -> None:
    content, message = NO_CHECKPOINTS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_model(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "run code" not in str(caught.value)
    assert "\n" not in str(caught.value)


def refusal(file: Path, tokenizer: TextTokenizer) -> str | None:
    try:
        open_model(file, tokenizer=tokenizer)
    except UserError as error:
        return str(error)
    return None


def test_cut_and_changed_files_are_one_sentence(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    convert_model(small(tokenizer, 32, (4, 2)), tmp_path / "a.pth", to="blip")
    state = {k: v.clone() for k, v in read_state(tmp_path / "a.pth").items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for source in ("a.pth", "a.safetensors", "old.pt"):
        whole = (tmp_path / source).read_bytes()
        for trial in range(60):
            place = int(torch.randint(1, 2000 if trial % 3 else len(whole), (1,), generator=generator))
            changed = bytearray(whole[:place] if trial % 2 else whole)
            if not trial % 2:
                changed[place : place + 4] = b"\xff\0\xfe\x01"
            file = tmp_path / f"changed{Path(source).suffix}"
            file.unlink(missing_ok=True)  # it may still be mapped
            file.write_bytes(changed)
            message = refusal(file, tokenizer)
            refused += message is not None
            assert message is None or "\n" not in message
    assert refused > 100


@pytest.mark.parametrize("part", ["../a.safetensors", "sub/../../a.safetensors", "ABSOLUTE"])
def test_an_index_that_leads_out_of_its_folder_is_refused(
    part: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    stored = small(tokenizer, 32, (4, 2))
    only = StoredModel(stored.blip.part(encoder=False, decoder=True), tokenizer)
    folder = convert_model(only, tmp_path / "theirs", to="transformers")
    weights = (folder / "model.safetensors").rename(tmp_path / "a.safetensors")
    part = part.replace("ABSOLUTE", str(weights))
    (folder / "sub").mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": part}}))
    with pytest.raises(UserError, match=r"index\.json is damaged: .* lies outside its folder"):
        open_model(folder)


def test_a_pickle_with_code_is_refused_as_such(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    torch.save({"model": Code()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Code()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(UserError, match="could run code"):
            open_model(tmp_path / name)


@pytest.mark.parametrize("kind", ["lfs", "html", "empty"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_files_of_a_folder_are_named(kind: str, name: str, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    stored = small(tokenizer, 32, (4, 2))
    save_model(tmp_path / "own", StoredModel(stored.model, tokenizer))
    part = stored.blip.part(encoder=False, decoder=True)
    convert_model(StoredModel(part, tokenizer), tmp_path / "theirs", to="transformers")
    content, message = NO_CHECKPOINTS[kind]
    for folder in ("own", "theirs"):
        (tmp_path / folder / name).write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            open_model(tmp_path / folder)
        assert message in str(caught.value)


def test_a_folder_without_a_tokenizer_takes_one_by_name(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    stored = small(tokenizer, 32, (4, 2))
    part = StoredModel(stored.blip.part(encoder=False, decoder=True), tokenizer)
    convert_model(part, tmp_path / "theirs", to="transformers")
    tokenizer.save(tmp_path / "words")
    for file in (tmp_path / "theirs").glob("token*"):
        file.unlink()
    with pytest.raises(UserError, match="name the tokenizer it was trained with: --tokenizer FOLDER"):
        open_model(tmp_path / "theirs")
    for place in ("words", "words/tokenizer.json"):
        assert (
            open_model(tmp_path / "theirs", tokenizer=str(tmp_path / place)).tokenizer.vocab_size
            == tokenizer.vocab_size
        )


def language(place: Path) -> Any:
    return make_language(LanguageConfig(source=str(place)))


def test_adapters_and_other_places_of_language_models(tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "facebook/opt-125m"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    message = r"is a PEFT adapter of facebook/opt-125m, not a whole model; merge .*merge_and_unload"
    for opened in (
        open_model,
        lambda place: make_language(LanguageConfig(source=str(place))),
        LanguageTokenizer.load,
    ):
        with pytest.raises(UserError, match=message):
            opened(adapter)
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(90))
    for place in (tmp_path / "model.gguf", tmp_path):
        with pytest.raises(UserError, match="GGUF"):
            language(place)
    broken = tmp_path / "llm"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (broken / name).write_bytes(LFS)
    for opened in (language, LanguageTokenizer.load):
        with pytest.raises(UserError, match=r"config\.json cannot be read: it is a git-lfs pointer"):
            opened(broken)


@pytest.mark.parametrize(
    ("size", "message"), [(100, "take 96 or 112"), (8, "take 16"), ((64, 100), "take 96 or 112"), (0, "take 16")]
)
def test_a_resolution_that_patches_do_not_fill_is_one_sentence(
    size: Any, message: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    stored = small(tokenizer, 32, (4, 2))
    save_model(tmp_path / "own", StoredModel(stored.model, tokenizer))
    convert_model(stored, tmp_path / "a.pth", to="blip")
    part = StoredModel(stored.blip.part(encoder=False, decoder=True), tokenizer)
    convert_model(part, tmp_path / "theirs", to="transformers")
    for name in ("own", "a.pth", "theirs"):
        if size == 0 and name != "own":
            continue  # 0 stands for the file's own there
        with pytest.raises(UserError, match=f"is not a multiple of the patch size 16: {message}"):
            open_model(tmp_path / name, tokenizer=tokenizer, image_size=size)
