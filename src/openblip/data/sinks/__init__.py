"""Sinks: where samples and tables go, each file or folder whole or not at all."""

from openblip.data.sinks.sets import LAYOUTS, Layout, Pair, encoded_image, merge_parts, remove_shard, write_shard
from openblip.data.sinks.tables import read_rows, write_rows

__all__ = [
    "LAYOUTS",
    "Layout",
    "Pair",
    "encoded_image",
    "merge_parts",
    "read_rows",
    "remove_shard",
    "write_rows",
    "write_shard",
]
