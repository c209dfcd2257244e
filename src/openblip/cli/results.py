"""What a command gives while it works through images: lines on a terminal, JSON lines in a pipe or a file.

Images that cannot be used are reported, left out and counted; what has been written stays whole lines, whatever
happens next. Processes that torchrun has started share the images out; the first of them writes, in order.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from openblip.cli.arguments import Quantize, person
from openblip.cli.launched import is_first, processes
from openblip.cli.progress import progress
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.places import check_new_file
from openblip.core.text import counted, json_bytes, read_list

if TYPE_CHECKING:
    from openblip.data.image_inputs import FoundImages, ImageBatch, ImageInput
    from openblip.data.sample import BrokenSample
    from openblip.tasks.predictor import Predictor

__all__ = [
    "FULL_DISK",
    "Row",
    "Rows",
    "check_counts",
    "computed_by",
    "conclude",
    "each_batch",
    "limit_threads",
    "open_predictor",
    "read_lines",
    "scores_line",
    "show_table",
    "sink",
    "tell",
    "tell_done",
    "tell_figures",
    "tell_left_out",
]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""numbers of errors by which a disk says that it takes no more"""
Row = tuple[str, dict[str, Any]]
"""The line that a person reads, and the JSON object that a program reads."""
Rows = Callable[["ImageBatch"], Iterator[Row]]
"""The results for a batch."""
_Piece = tuple[list[Row], int, list["BrokenSample"]]
"""The results of a batch, how many images they are of, and those that cannot be used."""


def open_predictor(
    model: str,
    *,
    device: str,
    dtype: str,
    batch_size: int,
    tokenizer: str | None = None,
    quantize: Quantize = "none",
    cuda_graphs: bool = False,
) -> Predictor:
    """Open a model to use, with no more threads than there are CPUs for this program."""
    check_counts(batch_size=batch_size)
    from openblip.tasks.load import load

    limit_threads()
    return load(
        model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        quantize=quantize,
        cuda_graphs=cuda_graphs,
    )


def limit_threads() -> None:
    """Compute with no more threads than there are CPUs for this program, unless OMP_NUM_THREADS is set."""
    import torch

    from openblip.core.runtime import usable_cores

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def each_batch(
    predictor: Predictor,
    images: FoundImages,
    rows: Rows,
    *,
    out: Path | None = None,
    before: Iterable[Row] = (),
    schema: Mapping[str, Any] | None = None,
    after: Callable[[], None] = lambda: None,
    done_before: int | None = None,
) -> None:
    """Go through the images a batch at a time and give each result; the exit code says if any was left out.

    Args:
        out: a new file for the results, in place of standard output.
        before: results that come first and need no image.
        schema: see `sink`.
        after: called at the end by each process, such as to tell what all results come to.
        done_before: how many results `out` holds, which stay; None for a new file.
    """
    from openblip.core.sharing import in_turns, sharing, together

    began, done, broken = time.perf_counter(), 0, list["BrokenSample"]()
    tell_left_out(images)

    def work(own: list[ImageInput]) -> Generator[_Piece, None, None]:
        for batch in predictor.batches(own):
            yield list(rows(batch)) if len(batch) else [], len(batch), batch.broken

    with sharing(), sink(out, schema, resumed=done_before is not None) as write, progress(len(images)) as show:

        def take(found: _Piece) -> None:
            nonlocal done
            given, count, unusable = found
            broken.extend(unusable)
            if len(images) > 1:
                for sample in unusable:
                    tell(sample)
            for line, record in given:
                write(line, record)
            done += count + len(unusable)
            show(done)

        together(lambda: [write(*row) for row in before])
        in_turns(images, predictor.batch_size, work, take)
        after()
    if is_first():
        conclude(images, broken, computed_by(predictor, began), others=bool(done_before))


def computed_by(predictor: Predictor, began: float) -> str:
    """Device, dtype, processes where there are several, and the seconds since `began` (`time.perf_counter`)."""
    several = f", {processes()} processes" if processes() > 1 else ""
    return f"{predictor.computing}{several}, {time.perf_counter() - began:.1f} s"


def tell(broken: BrokenSample) -> None:
    """Say on standard error which image is left out, and why."""
    print(f"openblip: skipped {broken.key} ({broken.cause}): {broken.detail}", file=sys.stderr)


def tell_left_out(images: FoundImages) -> None:
    """Say on standard error which files were not taken for images to use, a line for each kind."""
    for line in images.left_out.lines() if is_first() else ():
        print(f"openblip: {line}", file=sys.stderr)


def conclude(images: FoundImages, broken: list[BrokenSample], how: str, *, others: bool = False) -> None:
    """Say how many images are done; exit with 1 when some were left out, with 2 when all were.

    Args:
        others: are done already, by the command that is continued.
    """
    total = len(images)
    if broken and len(broken) == total and not others:
        if total == 1:
            raise UserError(f"{broken[0].key} cannot be used ({broken[0].cause}): {broken[0].detail}")
        raise UserError(f"none of the {total} images can be used")
    # Images that are left out; videos and the like are reported separately.
    tell_done(total - len(broken), "image", len(broken), how, left_out=len(images.left_out.broken()))


def tell_done(done: int, noun: str, skipped: int, how: str, *, left_out: int = 0) -> None:
    """Say on standard error how much is done; exit with 1 when something could not be used."""
    without = "".join(f", {count} {why}" for count, why in ((skipped, "skipped"), (left_out, "left out")) if count)
    if done or without:
        print(f"openblip: {counted(done, noun)} done{without} ({how})", file=sys.stderr)
    if without:
        raise SystemExit(1)


def tell_figures(line: str, figures: dict[str, Any], file: Path | None) -> None:
    """Say on standard error what all results come to, and write it whole to a JSON file where one is named."""
    print(f"openblip: {line}", file=sys.stderr)
    if file is not None:
        write_json(file, figures)


@contextmanager
def sink(
    out: Path | None, schema: Mapping[str, Any] | None = None, *, resumed: bool = False
) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """How results are written: `write(line, record)`.

    Args:
        out: a new file, of JSON lines or .parquet; None is standard output.
        schema: of the records as a parquet file's rows, see `data.sinks.tables`.
        resumed: what `out` holds stays, and the results follow it; JSON lines alone.

    Of several processes the first alone writes.
    """
    if not is_first():
        yield lambda line, record: None
        return
    if out is None and person():
        yield lambda line, record: print(line, flush=True)
        return
    if not resumed:
        check_new_file(out)
    if out is not None and out.suffix.lower() == ".parquet":
        if schema is None:
            raise UserError(f"{out}: these results are no table; give a .jsonl file")
        from openblip.data.sinks.tables import row_writer

        with row_writer(out, schema) as write_row:
            yield lambda line, record: write_row(record)
        return
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    # Unbuffered: what stands in the file is what has been given.
    opened: AbstractContextManager[IO[Any]] = nullcontext(sys.stdout)
    if out is not None:
        opened = open(out, "ab", buffering=0)  # noqa: SIM115
    written = 0
    with opened as file:
        number = file.fileno()

        def write(line: str, record: dict[str, Any]) -> None:
            nonlocal written
            data = json_bytes(record) + b"\n"
            _write_whole(number, data, f"{out or 'the output'} holds the first {written} results")
            written += 1

        yield write


def _write_whole(number: int, data: bytes, held: str) -> None:
    """Write a line to a file by its number, or none of it where the disk is full."""
    told, left = os.fstat(number), memoryview(data)
    try:
        while left:  # unbuffered: a buffer would take for written what is not
            left = left[os.write(number, left) :]
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        if stat.S_ISREG(told.st_mode):
            os.ftruncate(number, told.st_size)
        raise UserError(f"the disk is full: {held}; free some space and run the command on the rest") from error


def check_counts(least: float = 1, /, **counts: float) -> None:
    """Refuse numbers below `least`, infinite ones and NaN, by the names of their options."""
    for name, value in counts.items():
        if not least <= value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")


def read_lines(file: Path, what: str) -> list[str]:
    """The entries of a list in a file, see `read_list`."""
    if not file.is_file():
        raise UserError(f"there is no file {file} with {what}")
    lines = read_list(file)
    if not lines:
        raise UserError(f"{file} holds no text")
    return lines


def scores_line(score: float, itc: float, itm: float | None) -> str:
    """What a result of a search is ordered by, and its parts; the score is left out where it is ITC itself."""
    first = f"score {score:+.3f}  " if score != itc else ""
    return f"{first}ITC {itc:+.3f}" + ("" if itm is None else f"  ITM {itm:6.1%}")


def show_table(title: str, columns: tuple[str, str], rows: dict[str, str]) -> None:
    """Two columns on a terminal."""
    from openblip.report import Column, Table, print_table

    print_table(Table(title=title, columns=[Column(name=name) for name in columns], rows=list(rows.items())))
