"""The nano models, made once."""

from __future__ import annotations

import pytest
from capfilt_small import make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Captioner, filter, both."""
    return make_models(tmp_path_factory.mktemp("models"))
