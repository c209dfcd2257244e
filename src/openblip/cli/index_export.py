"""The command `index export`: an index as a parquet file."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from openblip.cli.index import Folder, Index, Meta, Since, Until, Words, metadata_of
from openblip.cli.progress import progress
from openblip.core.errors import UserError
from openblip.core.text import counted

__all__ = ["index_export"]


def index_export(
    *,
    index: Index,
    out: Annotated[Path, arg(metavar="FILE", help_behavior_hint="(required)")],
    values: Literal["float16", "float32"] = "float16",
    folder: Folder = "",
    since: Since = "",
    until: Until = "",
    words: Words = "",
    meta: Meta = (),
) -> None:
    """Write what an index holds, vectors included, to a parquet file.

    Args:
        out: a new .parquet file.
        values: how the vectors' values are written; an index holds float16.
    """
    if out.suffix.lower() != ".parquet":
        raise UserError(f"{out}: an index is written as parquet; name a file such as {out.with_suffix('.parquet')}")
    from openblip.index.catalog import Catalog
    from openblip.index.export import export
    from openblip.index.filters import Filters
    from openblip.index.stores import open_database, store_of

    filters = Filters(folder=folder, since=since, until=until, words=words, metadata=metadata_of(meta))
    with closing(Catalog(open_database(index))) as catalog, progress(catalog.count()) as show:
        done = export(catalog, store_of(catalog), out, kind=values, filters=filters, progress=show)
    print(f"openblip: {counted(done, 'image')} in {out}", file=sys.stderr)
