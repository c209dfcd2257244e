"""What cannot be recorded as a CUDA graph is seen from its operations; "meta" stands for a second device here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from openblip.models.recordable import WaitsForDevice, refusing_waits

X = torch.arange(6.0)
REFUSED: dict[str, Callable[[], object]] = {
    "_local_scalar_dense": lambda: float(X.sum()),
    "nonzero": lambda: X.nonzero(),
    "masked_select": lambda: X.masked_select(X > 2),
    "index": lambda: X[X > 2],
    "index_put_": lambda: X.clone().__setitem__(X > 2, torch.ones(3)),
    "repeat_interleave": lambda: torch.repeat_interleave(torch.tensor([1, 2])),
    "_to_copy": lambda: X.to("meta"),
    "copy_": lambda: torch.empty(6, device="meta").copy_(X),
}
ALLOWED: dict[str, Callable[[], Tensor]] = {
    "by places": lambda: X[torch.tensor([1, 2])],
    "in place": lambda: X.clone().index_copy_(0, torch.tensor([1]), torch.ones(1)),
    "a mask": lambda: X.masked_fill(X > 2, 0.0).cumsum(0).softmax(0),
    "a copy": lambda: X.to(torch.float64).copy_(X),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_waits_is_refused(name: str) -> None:
    REFUSED[name]()
    with pytest.raises(WaitsForDevice, match=f"^{name} "), refusing_waits():
        REFUSED[name]()


@pytest.mark.parametrize("name", ALLOWED)
def test_what_does_not_wait_is_computed(name: str) -> None:
    expected = ALLOWED[name]()
    with refusing_waits():
        found = ALLOWED[name]()
    assert torch.equal(found, expected)
