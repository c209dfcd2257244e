"""Where things lie in the folder of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from openblip.bootstrap.locks import no_readers
from openblip.bootstrap.table import Row, read_table
from openblip.data.sinks.sets import LAYOUTS, remove_shard

__all__ = ["Places"]


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie in the folder of a run; the training set lies in the folder itself."""

    root: Path

    @property
    def own(self) -> Path:
        """Everything but the training set."""
        return self.root / "capfilt"

    @property
    def run(self) -> Path:
        """What the run depends on."""
        return self.own / "run.json"

    @property
    def run_lock(self) -> Path:
        """What processes that write here hold."""
        return self.own / "writer.lock"

    @property
    def read_lock(self) -> Path:
        """What processes that read a complete run hold."""
        return self.own / "reader.lock"

    @property
    def totals(self) -> Path:
        """What it came to; written when every chunk is done, without "output" while it is decided on anew."""
        return self.own / "totals.json"

    @property
    def report(self) -> Path:
        """The page about it."""
        return self.own / "report.html"

    @property
    def tables(self) -> Path:
        """The result table, a parquet file for each chunk."""
        return self.own / "table"

    @property
    def parts(self) -> Path:
        """Lines of captions.jsonl that wait to be joined."""
        return self.own / "lines"

    def rows(self) -> Iterator[Row]:
        """The result table of all chunks that are done, in the source's order."""
        for table in sorted(self.tables.glob("*.parquet")):
            yield from read_table(table)

    def table(self, chunk: str) -> Path:
        """A chunk's piece of the result table."""
        return self.tables / f"{chunk}.parquet"

    def begun(self, chunk: str) -> Path:
        """The rows of a chunk that is not done, a line for each batch; a run that is done removes what ends so."""
        return self.tables / f".{chunk}.jsonl.tmp"

    def lock(self, chunk: str) -> Path:
        """What the process that is at work on a chunk holds."""
        return self.tables / f".{chunk}.lock.tmp"

    def marker(self, chunk: str) -> Path:
        """What says that a chunk is done, of which samples and for which output, and what it took."""
        return self.own / "done" / f"{chunk}.json"

    def unfinished(self) -> None:
        """Take back that the run is complete, and what was reported of it.

        Raises:
            UserError: somebody reads it.
        """
        files = (self.totals, self.report, self.report.with_suffix(".json"))
        if any(file.exists() for file in files):
            with no_readers(self.root, self.read_lock):
                for file in files:
                    file.unlink(missing_ok=True)

    def remove_others(self, chunks: Collection[str]) -> None:
        """Remove what was made of chunks that the source does not have any more."""
        files = (*self.marker("").parent.glob("*.json"), *self.tables.glob("*.parquet"))
        others = {file.stem for file in files} - set(chunks)
        if others:
            self.unfinished()
        for chunk in sorted(others):
            for layout in LAYOUTS:
                remove_shard(layout, self.root, self.parts, chunk)
            self.table(chunk).unlink(missing_ok=True)
            self.marker(chunk).unlink(missing_ok=True)
