"""A BLIP-2 model is used and fine-tuned at another image size than it was trained at."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_blip2
import timm
import torch
from safetensors.torch import save_file
from test_store import numbers, over, stored
from test_towers_stored import write_source
from timm.layers import resample_abs_pos_embed
from torch import nn

from openblip.checkpoints.blip2_parts import open_tower
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.errors import UserError
from openblip.models.blip2 import Blip2
from openblip.models.configs import TowerConfig, as_tower
from openblip.recipes.blip2 import blip2_caption, blip2_retrieval, blip2_vqa
from openblip.tasks.training import run_training

DATA = "world:train?n=8"
KINDS = ["timm file", "timm folder", "CLIP with its text", "DINOv3"]


def sizes(kind: str) -> tuple[int, int]:
    """Of the images that the tower reads, and others."""
    return (160, 240) if kind.startswith("timm") else (48, 64)


def model(kind: str, folder: Path, **changes: Any) -> Blip2:
    """A model over a tower of the kind."""
    source = write_source(kind, folder / "source")
    tower = open_tower(replace(as_tower(source), **changes))
    return over(tower.config, tower.width)


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))


def table_of(made: Blip2) -> torch.Tensor:
    """Learned positions [1, N, D]."""
    return made.vision.encoder.get_parameter("vit.pos_embed")


@torch.no_grad()
def tokens(made: Blip2, side: int) -> torch.Tensor:
    return made.eval().vision(images(side)).float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["by name", "whole", "trained"])
def test_a_tower_reads_other_images_as_its_library_does(kind: str, how: str, tmp_path: Path) -> None:
    before, side = sizes(kind)
    made = model(kind, tmp_path, **({"trained": True} if how == "trained" else {}))
    save_model(tmp_path / "model", stored(made), whole=how == "whole")
    found = open_model(tmp_path / "model", image_size=side).model
    assert found.vision.pixels == (side, side)
    assert found.config.vision.image_size == side
    assert torch.allclose(tokens(found, side), tokens(made_at(kind, made, side), side), atol=1e-5)
    # What does not depend on the size is what it was.
    assert found.vision.mean == made.vision.mean
    assert torch.equal(found.qformer.queries, made.qformer.queries)
    # Saved and opened without a size, it is what it was; and back at its own size the same as before.
    save_model(tmp_path / "again", stored(found), whole=how == "whole")
    again = open_model(tmp_path / "again").model
    assert again.vision.pixels == (side, side)
    assert torch.equal(numbers(again), numbers(found))
    if how == "by name":
        back = open_model(tmp_path / "again", image_size=before).model
        assert torch.equal(numbers(back), numbers(made))


def made_at(kind: str, made: Blip2, side: int) -> Blip2:
    """The model as timm or transformers resize it themselves."""
    copy = over(made.config.vision, made.vision.width)
    copy.vision.encoder.load_state_dict(made.vision.encoder.state_dict())
    if kind.startswith("timm"):
        vit: Any = copy.vision.encoder.vit
        table = vit.pos_embed.data
        vit.set_input_size(img_size=(side, side))
        rows = side // vit.patch_embed.patch_size[0]
        wanted = resample_abs_pos_embed(table, [rows, rows], num_prefix_tokens=vit.num_prefix_tokens)
        assert torch.allclose(vit.pos_embed, wanted, atol=1e-6)
    return copy


def test_an_own_tower_is_interpolated_as_lavis_does(tmp_path: Path) -> None:
    made = small_blip2.model()
    side = 2 * small_blip2.PIXELS
    save_model(tmp_path / "m", StoredModel(made, small_blip2.tokenizer(), {}))
    found = open_model(tmp_path / "m", image_size=side).model
    table, new = table_of(made), table_of(found)
    grid = round((table.shape[1] - 1) ** 0.5)
    # As LAVIS' interpolate_pos_embed.
    square = table[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    wanted = nn.functional.interpolate(square, size=(2 * grid, 2 * grid), mode="bicubic", align_corners=False)
    assert torch.allclose(new[:, 1:], wanted.permute(0, 2, 3, 1).flatten(1, 2), atol=1e-6)
    assert torch.equal(new[:, :1], table[:, :1])
    assert found.config.vision.own is not None
    assert found.config.vision.own.image_size == side
    assert open_model(tmp_path / "m", image_size=small_blip2.PIXELS).model.vision.pixels == made.vision.pixels
    with pytest.raises(UserError, match="not a multiple of the patch size 8: take"):
        open_model(tmp_path / "m", image_size=side + 3)
    with pytest.raises(UserError, match="takes square images"):
        open_model(tmp_path / "m", image_size=(side, side + 8))


def test_half_precision_is_opened_as_it_will_be(tmp_path: Path) -> None:
    made = model("timm file", tmp_path, dtype="bfloat16")
    save_model(tmp_path / "model", stored(made))
    found = open_model(tmp_path / "model", image_size=240).model
    assert found.vision.dtype == torch.bfloat16
    save_model(tmp_path / "again", stored(found))
    again = open_model(tmp_path / "again").model
    assert torch.equal(table_of(again), table_of(found))


def test_another_tower_is_refused_at_another_size_too(tmp_path: Path) -> None:
    made = model("timm file", tmp_path)
    save_model(tmp_path / "model", stored(made))
    shutil.rmtree(tmp_path / "source")
    torch.manual_seed(7)
    write_other = timm.create_model("test_vit").state_dict()
    (tmp_path / "source").mkdir()
    save_file({name: value + 0.1 for name, value in write_other.items()}, tmp_path / "source/model.safetensors")
    with pytest.raises(UserError, match="is not the one that"):
        open_model(tmp_path / "model", image_size=240)


def test_transformers_models_of_another_size_are_exported(tmp_path: Path) -> None:
    made = small_blip2.model()
    side = 2 * small_blip2.PIXELS
    save_model(tmp_path / "m", StoredModel(made, small_blip2.tokenizer(), {}))
    found = open_model(tmp_path / "m", image_size=side)
    convert_model(found, tmp_path / "theirs", to="transformers")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["vision_config"]["image_size"] == side
    again = open_model(tmp_path / "theirs").model
    assert again.vision.pixels == (side, side)
    assert torch.allclose(tokens(again, side), tokens(found.model, side), atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["timm file", "CLIP with its text", "own"])
def test_a_fine_tuning_at_another_size(kind: str, frozen: bool, tmp_path: Path) -> None:
    before, side = (small_blip2.PIXELS, 2 * small_blip2.PIXELS) if kind == "own" else sizes(kind)
    made = small_blip2.model() if kind == "own" else model(kind, tmp_path)
    start = StoredModel(made, small_blip2.tokenizer(), {}) if kind == "own" else stored(made)
    save_model(tmp_path / "start", start)
    config = blip2_retrieval((DATA,), model=str(tmp_path / "start"))
    train = replace(config.train, max_steps=1, trackers=(), device="cpu", gradient_checkpointing=0.0)
    config = replace(
        config, vision=TowerConfig(image_size=side), unfreeze_vision=not frozen, batch_size=4, num_workers=0,
        max_length=12, train=replace(train, learning_rate=1e-2, warmup_steps=0),
    )  # fmt: skip
    run_training(config, tmp_path / "run", show=False)
    tuned = open_model(tmp_path / "run" / "model").model
    assert tuned.vision.pixels == (side, side) != (before, before)
    assert tuned.config.vision.trained is not frozen
    resized = open_model(tmp_path / "start", image_size=side).model
    same = torch.equal(tokens(tuned, side), tokens(resized, side))
    assert same is frozen
    assert not torch.equal(tuned.qformer.queries, resized.qformer.queries)


def test_recipes_have_the_papers_sizes() -> None:
    made = {"captions": blip2_caption(("d",), model="m"), "retrieval": blip2_retrieval(("d",), model="m")}
    assert {config.vision.image_size for config in made.values()} == {364}
    assert blip2_vqa(("d",), model="m").vision.image_size == 490
    assert blip2_vqa(("d",), model="m", language="l").vision.image_size == 490
