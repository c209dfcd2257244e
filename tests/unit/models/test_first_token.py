"""What needs the first token's state alone computes no other in its last block: the same numbers and gradients."""

from __future__ import annotations

import pytest
import torch

from openblip.models.blip import Blip, blip_config

LENGTHS = (7, 3, 5)


@pytest.mark.parametrize("with_memory", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_first_token_is_the_same(with_memory: bool, padded: bool, checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = Blip(blip_config("nano", vocab_size=50, image_size=32)).double().train()
    encoder = model.encoder
    encoder.checkpointing = checkpointing
    ids = torch.randint(5, 50, (3, 7))
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None] if padded else None
    embeds = torch.randn(3, 17, 64, dtype=torch.float64, requires_grad=True)
    found = {}
    for first_only in (True, False):
        memory = model.remember(embeds) if with_memory else None
        hidden = encoder(ids, mask, memory=memory, first_only=first_only)
        assert hidden.shape == (3, 1 if first_only else 7, 64)
        model.zero_grad()
        embeds.grad = None
        hidden[:, 0].square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[first_only] = {"hidden": hidden[:, 0].detach(), **gradients}
        if with_memory:
            assert embeds.grad is not None
            found[first_only]["embeds"] = embeds.grad
    assert found[True].keys() == found[False].keys()
    for name, value in found[False].items():
        torch.testing.assert_close(found[True][name], value, rtol=1e-9, atol=1e-11, msg=name)
