"""Statements about the images of a sample, true or false, as its texts: NLVR2's sentences about two images.

    source = open_statements("nlvr2/dev.json?image_root=nlvr2/images")
    sample = source[0]
    sample.images                    # (".../dev-850-0-img0.png", ".../dev-850-0-img1.png")
    sample.texts                     # ("both images show two dogs",)
    statements_of(sample.meta)       # (Statement(text="both images ...", label=True, group="dev-850-1"),)

All statements about a pair make one sample, so that its images are decoded and encoded once for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample, Sample
from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources.base import Source
from openblip.data.sources.digest import Digest
from openblip.data.sources.labels import Statement, read_statements
from openblip.data.sources.open import open_source

__all__ = ["StatementSource", "open_statements", "statements_of"]

_STATEMENTS = "statements"


class StatementSource(Source):
    """Another source's statements, read.

    Args:
        source: with texts that `statement_texts` made.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.name, self.bad_rows, self.num_images = source.name, source.bad_rows, source.num_images
        self.blocks, self.window = source.blocks, source.window
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        statements = read_statements(sample.texts)
        if not statements:
            raise BrokenSample("no-text", sample.key, "there is no statement about these images")
        texts = tuple(statement.text for statement in statements)
        return replace(sample, texts=texts, meta={**sample.meta, _STATEMENTS: statements})

    def text_counts(self) -> np.ndarray:
        return self._source.text_counts()

    def digest(self, digest: Digest, span: range, *, texts: bool) -> None:
        digest.add(_STATEMENTS)
        self._source.digest(digest, span, texts=texts)

    def describe(self) -> dict[str, Any]:
        return self._source.describe()


def open_statements(spec: SourceConfig | str, *, num_images: int = 2) -> Source:
    """Open whatever `spec` names as labelled statements; see docs/data.md for the formats.

    Args:
        num_images: that each statement is about.

    Raises:
        UserError: as `open_source`; or the source holds no statements.
    """
    config = parse_spec(spec) if isinstance(spec, str) else spec
    opened = replace(config, statements=True, num_images=num_images, need_texts=True)
    return StatementSource(open_source(opened))


def statements_of(meta: Mapping[str, Any]) -> tuple[Statement, ...]:
    """The statements of a sample, in the order of its texts.

    Raises:
        UserError: the sample has none.
    """
    statements = meta.get(_STATEMENTS)
    if not isinstance(statements, tuple):
        raise UserError("this sample holds no statements with labels; open its source with open_statements")
    return statements
