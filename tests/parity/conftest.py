"""transformers' models, each made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from their_models import WORDS, Theirs, make_theirs

from openblip.core.tokenizer import TextTokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.train([WORDS] * 2, vocab_size=90)


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> Callable[..., Theirs]:
    """A maker of folders, each made once a session: `theirs("BlipForQuestionAnswering", TINY)`."""
    made: dict[tuple[Any, ...], Theirs] = {}

    def make(kind: str, sizes: dict[str, int], **text: Any) -> Theirs:
        key = (kind, *sizes.items(), *text.items())
        if key not in made:
            made[key] = make_theirs(kind, sizes, tmp_path_factory.mktemp(kind), tokenizer, **text)
        return made[key]

    return make
