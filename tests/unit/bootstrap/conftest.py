"""The nano models, made once."""

from __future__ import annotations

import pytest
import torch
from capfilt_small import make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Captioner, filter, both."""
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))
