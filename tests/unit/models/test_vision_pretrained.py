"""A vision tower started from a timm model gives that model's tokens; the donors are made on the spot."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from openblip.core.errors import UserError
from openblip.models.vision import VisionConfig, VisionEncoder

SIZES: dict[str, Any] = {"patch_size": 8, "depth": 2, "num_heads": 2}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""the same sums of float32 in another order"""


def donor(pixels: int = 32, **changes: Any) -> VisionTransformer:
    torch.manual_seed(3)
    model = VisionTransformer(img_size=pixels, embed_dim=24, num_classes=0, **{**SIZES, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def tower(pixels: int = 32, **changes: Any) -> VisionEncoder:
    config = VisionConfig(image_size=pixels, width=24, pretrained="some_vit", **{**SIZES, **changes})
    return VisionEncoder(config).eval()


def offer(monkeypatch: pytest.MonkeyPatch, model: torch.nn.Module) -> list[tuple[Any, ...]]:
    """Let timm give `model`, whatever is requested; returns what was."""
    asked: list[tuple[Any, ...]] = []

    def create_model(name: str, **options: Any) -> torch.nn.Module:
        asked.append((name, options))
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    return asked


def test_it_gives_the_donors_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offer(monkeypatch, donor())
    own = tower()
    images = torch.randn(2, 3, 32, 32)
    before = own(images)
    own.load_pretrained()
    assert asked == [("some_vit", {"pretrained": True, "num_classes": 0})]
    expected = donor().forward_features(images)
    torch.testing.assert_close(own(images), expected, **CLOSE)
    assert not torch.allclose(before, expected, atol=0.1)


def test_positions_are_interpolated_to_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, donor(pixels=32))
    own = tower(pixels=48)
    own.load_pretrained()
    theirs = donor(pixels=32).pos_embed
    grid = theirs[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(own.vit.pos_embed[0, 1:].T.reshape(24, 6, 6), wanted[0], **CLOSE)
    assert own.vit.pos_embed[:, :1].equal(theirs[:, :1])
    # All else is as it was: at the donor's size the donor's positions would give its tokens.
    for name, value in own.vit.state_dict().items():
        assert name == "pos_embed" or value.equal(donor().state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 3}, "blocks.2.*and 11 more differ"),
        ({"patch_size": 16}, "patch_embed.proj.weight"),
        ({"stem": "conv"}, "patch_embed.layers"),
    ],
)
def test_a_misfit_is_told_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    offer(monkeypatch, donor())
    own = tower(**changes)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(UserError, match=f'"some_vit" does not fit this vision tower: {message}'):
        own.load_pretrained()
    assert all(value.equal(before[name]) for name, value in own.state_dict().items())


def test_what_timm_cannot_give_is_reported() -> None:
    with pytest.raises(UserError, match='timm has no weights for "some_vit" here'):
        tower().load_pretrained()
