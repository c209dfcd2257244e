"""Sources of samples: folders, captions files, parquet, tars, Hugging Face datasets, the scene world.

source = open_source("tars/{00000..00099}.tar")
source[7]  # Sample(key=..., images=(<bytes>,), texts=("a dog on a beach",), ...)
"""

from __future__ import annotations

from openblip.data.source_config import SourceConfig, parse_spec
from openblip.data.sources.base import Source
from openblip.data.sources.open import open_source

__all__ = ["Source", "SourceConfig", "open_source", "parse_spec"]
