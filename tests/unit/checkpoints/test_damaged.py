"""Checkpoints with a tensor that is missing or of another shape: an error that names it, whichever it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.state import read_state
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core import files
from openblip.core.errors import UserError
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import QFormerConfig, TextConfig, TowerConfig, VisionConfig
from openblip.models.tower import make_tower

WORDS = TextTokenizer.train(["a red bus", "two dogs"] * 3, vocab_size=50)
Damage = Callable[[Tensor], Tensor | None]
DAMAGES: dict[str, Damage] = {
    "missing": lambda tensor: None,
    "flat": lambda tensor: tensor.flatten(),
    "scalar": lambda tensor: torch.zeros(()),
    "empty": lambda tensor: tensor[:0] if tensor.ndim else torch.zeros(0),
    "of one more dimension": lambda tensor: tensor[None],
    "narrow": lambda tensor: torch.zeros((3,) * tensor.ndim),
    "long": lambda tensor: torch.cat((tensor, tensor)) if tensor.ndim else torch.zeros(2),
}


def blip() -> StoredModel:
    torch.manual_seed(0)
    config = BlipConfig(
        vision=VisionConfig(image_size=32, patch_size=16, width=64, depth=2, num_heads=1),
        text=TextConfig(
            vocab_size=WORDS.vocab_size, width=64, depth=2, num_heads=1, inner_width=64, max_positions=16,
            memory_width=64,
        ),
        embed_dim=8,
    )  # fmt: skip
    return StoredModel(Blip(config).eval(), WORDS)


def blip2() -> StoredModel:
    torch.manual_seed(0)
    own = VisionConfig(image_size=32, patch_size=16, width=64, depth=2, num_heads=1, final_norm=False)
    tower = TowerConfig(source="own", own=own)
    qformer = QFormerConfig(
        num_queries=4, width=64, depth=2, num_heads=1, inner_width=64, memory_width=64,
        vocab_size=WORDS.vocab_size, max_positions=16,
    )  # fmt: skip
    config = Blip2Config(vision=tower, qformer=qformer, embed_dim=8)
    return StoredModel(Blip2(config, make_tower(tower)).eval(), WORDS)


def damaged(whole: dict[str, Tensor]) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Tensors of which no other is like, damaged in two ways each, which take turns."""
    kinds = list(DAMAGES)
    alike = re.compile(r"(blocks|layers?)\.1\.|position_ids|bias|decoder.*(cross|output|inter)")
    keys = [key for key in whole if not alike.search(key)]
    for number, key in enumerate(keys):
        for kind in (kinds[number % len(kinds)], kinds[(number + 3) % len(kinds)]):
            tensor = DAMAGES[kind](whole[key])
            if tensor is not None and tensor.shape == whole[key].shape:
                continue
            others = {name: value for name, value in whole.items() if name != key}
            yield key, kind, others if tensor is None else {**others, key: tensor.contiguous()}


def refusal(place: Path) -> str:
    """Why it does not open; "" where it does."""
    try:
        open_model(place, tokenizer=WORDS)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    for make in (blip, blip2):
        for to in ("openblip", "transformers"):
            with pytest.raises(UserError, match=r"the disk is full: .*/out was not written"):
                convert_model(make(), tmp_path / "out", to=to, part="match")
    (link := tmp_path / ".a.tmp").symlink_to("/dev/full")
    monkeypatch.setattr(files, "_beside", lambda *_: link)
    with pytest.raises(UserError, match=r"the disk is full: .*/out\.pth was not written"):
        convert_model(blip(), tmp_path / "out.pth", to="blip")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [blip, blip2])
def test_a_damaged_file_names_a_tensor(make: Callable[[], StoredModel], tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    convert_model(make(), file, to="blip")
    whole = {key: value.clone() for key, value in read_state(file).items()}
    fine = set()
    for key, kind, state in damaged(whole):
        torch.save({"model": state}, file)
        message = refusal(file)
        assert "\n" not in message
        # A tensor that sizes are read of may give a model of other sizes, whose heads or widths do not fit.
        if message:
            assert kind in ("narrow", "long") or re.search(r'"[\w.]+"', message), f"{key} {kind}: {message}"
        else:
            fine.add((key if key == "temp" else key.partition(".")[0], kind))
    # Tied tensors may stand once, and the temperature is not in every file.
    assert fine <= {("temp", "missing"), ("text_decoder", "missing"), ("Qformer", "missing")}


def test_damaged_positions_of_a_folder_of_transformers_are_named(tmp_path: Path) -> None:
    for name, stored in (("blip", blip()), ("blip2", blip2())):
        convert_model(stored, tmp_path / name, to="transformers", part="match")
        file, key = tmp_path / name / "model.safetensors", "vision_model.embeddings.position_embedding"
        state = load_file(file)
        for kind in ("flat", "scalar", "narrow", "long"):
            save_file({**state, key: cast(Tensor, DAMAGES[kind](state[key])).contiguous()}, file)
            with pytest.raises(UserError, match=f'"{key}"'):
                open_model(tmp_path / name)


def test_the_part_of_a_fused_tensor_is_named(tmp_path: Path) -> None:
    convert_model(blip(), tmp_path / "a.pth", to="blip")
    whole = read_state(tmp_path / "a.pth")
    key = "text_encoder.encoder.layer.0.attention.self.value.weight"
    for changed in (whole[key].flatten(), torch.zeros(3, 3), torch.cat((whole[key], whole[key]))):
        torch.save({"model": {**whole, key: changed}}, tmp_path / "b.pth")
        with pytest.raises(
            UserError, match=re.escape(f'"{key}" has shape {tuple(changed.shape)}, which does not fit')
        ):
            open_model(tmp_path / "b.pth", tokenizer=WORDS)


def test_positions_that_fill_no_grid_are_named(tmp_path: Path) -> None:
    save_model(tmp_path / "own", blip())
    file = tmp_path / "own" / "model.safetensors"
    state = load_file(file)
    for changed in (torch.zeros(3), torch.zeros(1, 1, 64), torch.zeros(2, 5, 64), torch.zeros(1, 7, 64)):
        save_file({**state, "vision.vit.pos_embed": changed}, file)
        with pytest.raises(UserError, match=r'"vision\.vit\.pos_embed"'):
            open_model(tmp_path / "own", image_size=64)
