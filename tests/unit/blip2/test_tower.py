"""The frozen vision tower: whose it is, that it stays frozen, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_blip2
import timm
import torch
from small_blip2 import PIXELS, images

from openblip.checkpoints.blip2 import _VISION_OF_WIDTH
from openblip.core import compute
from openblip.core.errors import UserError
from openblip.models.blip import Blip, blip_config
from openblip.models.blip2 import Blip2, Blip2Config
from openblip.models.configs import LanguageConfig, QFormerConfig, TowerConfig, VisionConfig
from openblip.models.language import make_language
from openblip.models.tower import FrozenTower, make_tower

OWN = VisionConfig(image_size=PIXELS, patch_size=8, width=32, depth=3, num_heads=2, final_norm=False)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = CLIPVisionConfig(num_hidden_layers=3, image_size=PIXELS, patch_size=8, **sizes)
    CLIPVisionModel(config).save_pretrained(folder)
    return folder


def towers(clip: Path) -> list[FrozenTower]:
    blip = Blip(blip_config("nano", vocab_size=60, image_size=PIXELS))
    return [
        make_tower(TowerConfig(source="own", own=OWN)),
        make_tower(TowerConfig(source="timm:test_vit"), pretrained=False),
        make_tower(TowerConfig(source=f"hf:{clip}")),
        make_tower(TowerConfig(source="openblip:somewhere", drop_layers=1), blip_vision=blip.vision),
    ]


@torch.no_grad()
def test_every_kind_gives_tokens(clip_folder: Path) -> None:
    for tower in towers(clip_folder):
        tokens = tower(torch.randn(2, 3, *tower.pixels))
        assert tokens.shape[0] == 2
        assert tokens.shape[1] > 1
        assert tokens.shape[2] == tower.width, tower.config.source


def test_frozen_is_frozen(clip_folder: Path) -> None:
    for tower in towers(clip_folder):
        config = Blip2Config(
            vision=tower.config,
            qformer=QFormerConfig(width=32, depth=2, num_heads=2, inner_width=64, memory_width=tower.width),
        )
        model = Blip2(config, tower).train()
        assert not any(part.training for part in tower.encoder.modules()), tower.config.source
        assert model.qformer.training
        model.remember(model.encode_image(torch.randn(1, 3, *tower.pixels))).keys[0].sum().backward()
        assert all(p.grad is None and not p.requires_grad for p in tower.parameters())
        assert model.vision_norm.weight.grad is not None
        assert model.frozen_parameter_names() == {f"vision.{name}" for name, _ in tower.named_parameters()}


@torch.no_grad()
def test_its_dtype_stays_under_autocast() -> None:
    tower = make_tower(TowerConfig(source="own", own=OWN, dtype="bfloat16"))
    assert tower.dtype == torch.bfloat16
    assert tower(images()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert make_tower(TowerConfig(source="own", own=OWN))(images()).dtype == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_what_the_cpu_computes_best_and_is_kept_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, native: bool, dtype: str
) -> None:
    cpu = compute.Cpu(vendor="amd", avx512=native, bfloat16=native, has_onednn=True)
    monkeypatch.setattr(compute, "this_cpu", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    tower = make_tower(TowerConfig(source="own", own=OWN, dtype="auto"))
    folder = small_blip2.write_language(tmp_path / "lm")
    language = make_language(LanguageConfig(source=str(folder), dtype="auto"))
    config = small_blip2.config(language=LanguageConfig(source=str(folder), dtype="auto"))
    model = Blip2(replace(config, vision=replace(tower.config, dtype="auto")), tower, language)
    assert str(tower.dtype) == str(language.dtype) == f"torch.{dtype}"
    assert model.config.vision.dtype == dtype
    assert model.config.language is not None
    assert model.config.language.dtype == dtype


@torch.no_grad()
def test_dropped_blocks_are_those_at_the_end() -> None:
    name = "test_vit"
    whole: Any = timm.create_model(name, num_classes=0)
    tower = make_tower(TowerConfig(source=f"timm:{name}", drop_layers=2), pretrained=False)
    missing = tower.encoder.vit.load_state_dict(whole.state_dict(), strict=False)  # type: ignore[union-attr]
    assert all(".norm" in key or key.startswith(("norm", "fc_norm", "blocks.")) for key in missing.unexpected_keys)
    pixels = torch.randn(1, 3, *tower.pixels)
    expected = whole.eval().forward_intermediates(
        pixels, indices=[len(whole.blocks) - 3], norm=False, output_fmt="NLC", return_prefix_tokens=True
    )[1][0]
    torch.testing.assert_close(tower(pixels), torch.cat((expected[1], expected[0]), dim=1))


@torch.no_grad()
def test_clip_of_transformers_is_read_at_its_second_last_layer(clip_folder: Path) -> None:
    from transformers import CLIPVisionModel

    theirs = CLIPVisionModel.from_pretrained(clip_folder)
    expected = theirs(pixel_values=images(), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(make_tower(TowerConfig(source=f"hf:{clip_folder}"))(images()), expected)


def test_a_trained_tower_learns() -> None:
    tower = make_tower(TowerConfig(source="own", own=OWN, trained=True)).train()
    tower(images()).sum().backward()
    assert tower.encoder.training
    assert all(p.grad is not None for p in tower.parameters())
    assert tower.depth == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "resnet"}, "timm:NAME"),
        ({"source": "own"}, "sizes"),
        ({"source": "timm:test_vit", "drop_layers": -1}, "drop_layers"),
        ({"source": "timm:test_vit", "image_size": 0}, "cannot be 0"),
        ({"source": "timm:test_vit", "image_size": -8}, "cannot be -8"),
        ({"source": "timm:test_vit", "drop_layers": 99}, "lower drop_layers"),
        ({"source": "timm:no_such_model"}, "no_such_model"),
        ({"source": "timm:test_resnet", "drop_layers": 1}, "has stages"),
        ({"source": "hf:/no/such/folder"}, "there is no folder /no/such/folder"),
    ],
)
def test_what_is_no_tower_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_tower(TowerConfig(**settings), pretrained=False)


def test_the_published_towers_are_known_to_timm() -> None:
    from timm.models import get_pretrained_cfg

    giant: Any = get_pretrained_cfg(TowerConfig().name)
    assert giant.tag.startswith("laion400m")  # of all weights those that LAVIS was trained over
    with torch.device("meta"):
        tower = make_tower(TowerConfig(), pretrained=False)
    assert (tower.width, tower.pixels, tower.depth) == (1408, (224, 224), 39)
    with torch.device("meta"):
        large = make_tower(_VISION_OF_WIDTH[1024], pretrained=False)
    assert (large.width, large.depth) == (1024, 23)


def test_widths_must_agree() -> None:
    config = Blip2Config(vision=TowerConfig(source="own", own=OWN), qformer=QFormerConfig(memory_width=64))
    with pytest.raises(UserError, match="32 wide and the Q-Former reads 64"):
        Blip2(config, make_tower(config.vision))
