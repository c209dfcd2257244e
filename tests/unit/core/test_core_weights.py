"""What a file holds of a module is what its state dict has, a shared tensor once or under each name."""

from __future__ import annotations

import torch
from torch import nn

from openblip.core.fingerprint import fingerprint
from openblip.core.weights import stored_tensors


class Tied(nn.Module):
    """Two layers that share a weight, buffers that are stored and not, and parts that are not there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(()))
        self.again = self.norm
        self.register_parameter("absent", None)
        self.register_buffer("table", torch.ones(2))
        self.register_buffer("computed", torch.ones(2), persistent=False)


def test_they_are_those_of_the_state_dict_in_its_order() -> None:
    module = Tied()
    wanted, found = module.state_dict(), stored_tensors(module, every_name=True)
    assert list(found) == list(wanted)
    assert all(found[name].data_ptr() == value.data_ptr() for name, value in wanted.items())
    assert not any(value.requires_grad for value in found.values())
    once = [name for name in wanted if name != "second.weight" and not name.startswith("again.")]
    assert list(stored_tensors(module)) == once


def test_a_fingerprint_leaves_the_storage_resizable() -> None:
    """FSDP2 frees gathered weights so."""
    weight = torch.ones(3)
    fingerprint([("weight", weight)])
    weight.untyped_storage().resize_(0)
