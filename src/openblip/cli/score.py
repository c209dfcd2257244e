"""The command `score`: how well texts fit their images, as text-to-image papers report it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from openblip.cli.arguments import Device, Dtype, Model, OptionalFile, Quantize, Tokenizer
from openblip.cli.launched import is_first, join
from openblip.cli.progress import progress
from openblip.cli.results import computed_by, open_predictor, sink, tell, tell_done, tell_figures
from openblip.core.errors import UserError, nearest
from openblip.core.places import check_new_file

if TYPE_CHECKING:
    from openblip.data.sample import BrokenSample, ImageLike
    from openblip.data.sources.pairs import Pair
    from openblip.tasks.predictor import Predictor
    from openblip.tasks.results import Score
    from openblip.tasks.scoring import Scorer

__all__ = ["score"]

_WINDOW_ROWS, _WINDOW_BYTES = 8192, 256 << 20
"""rows among which those of one image share its encoding, and the bytes of images that are held for that"""
_SCHEMA = {
    "row": "int",
    "id": "string",
    "image": "string",
    "text": "string",
    "itm": "float",
    "itc": "float",
    "log_prob": "float",
    "num_tokens": "int",
    "log_prob_per_token": "float",
    "vqa": "float",
}
_READS: dict[str, tuple[str, ...]] = {
    "itm": (),
    "itc": (),
    "likelihood": ("prompt",),
    "vqa": ("question", "answer"),
}
"""the options that each measure reads"""
_MEANS = {
    "itm": "ITM probability",
    "itc": "ITC cosine",
    "log_prob": "log-likelihood",
    "log_prob_per_token": "log-likelihood of a token",
    "vqa": "VQAScore",
}


def score(
    pairs: Annotated[Positional[str], arg(metavar="PAIRS", help_behavior_hint="")],
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    by: Annotated[str, arg(metavar="LIST", help_behavior_hint="")] = "",
    prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    question: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    answer: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    out: OptionalFile = None,
    summary: OptionalFile = None,
) -> None:
    """Score how well texts fit their images: ITM, ITC, likelihood of the text, VQAScore.

    Args:
        pairs: a file with columns image and text (JSON lines, CSV, parquet), or any other data as for train.
        by: of itm, itc, likelihood, vqa those to compute, with commas; left out, all that the model has.
        prompt: what stands before a text in its likelihood; left out, what the model was trained with.
        question: of VQAScore, {} in place of the text; left out, that of Lin et al.
        answer: whose probability VQAScore is; left out, "yes".
        batch_size: images at a time.
        out: a new file for the results, in the order of the rows: .parquet, else one JSON object a line.
        summary: a new JSON file for the means, and for the rows that could not be used.

    Under torchrun the processes share the images out; the results are those of one process.
    """
    check_new_file(summary, out)
    options = {"prompt": prompt, "question": question, "answer": answer}
    if measures := [name.strip() for name in by.split(",") if name.strip()]:
        _check_measures(measures, **options)
    from openblip.core.sharing import sharing
    from openblip.data.sample import BrokenSample
    from openblip.data.sources.pairs import read_pairs
    from openblip.tasks.scoring import ANSWER, QUESTION, Scorer

    windows = _windows(read_pairs(pairs))
    window = next(windows, [])
    join(device)
    predictor = open_predictor(
        model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size, quantize=quantize
    )
    scorer = Scorer(predictor.adapter, measures, prompt, question or QUESTION, answer or ANSWER)
    _check_measures(scorer.by, **options)
    began, means, broken = time.perf_counter(), _Means(), list[BrokenSample]()
    with sharing(), sink(out, _SCHEMA) as write, progress(None, unit="rows") as show:

        def take(one: tuple[Pair, Score] | BrokenSample) -> None:
            if isinstance(one, BrokenSample):
                broken.append(one)
                tell(one)
                return
            pair, result = one
            record = _record(pair, result, text_ids=out is not None and out.suffix.lower() == ".parquet")
            means.add(record)
            shown = "  ".join(f"{name} {record[name]:.4g}" for name in _MEANS if name in record)
            write(f"{pair.name}: {shown}  {pair.text}", record)
            show(means.rows + len(broken))

        while window:
            _score_window(window, predictor, scorer, take)
            window = next(windows, [])
    if not is_first():
        return
    if not means.rows:
        first = f"; the first of {len(broken)}: {broken[0]}" if broken else ""
        raise UserError(f"no row of {pairs} can be used{first}")
    left_out = [{"key": one.key, "cause": one.cause, "detail": one.detail} for one in broken]
    about = {"model": model, "pairs": pairs, "by": list(scorer.by), "rows": means.rows, "images": len(means.images)}
    line = ", ".join(f"{_MEANS[name]} {value:.4g}" for name, value in means.means.items())
    tell_figures(f"means: {line}", {**about, "means": means.means, "left_out": left_out}, summary)
    tell_done(means.rows, "row", len(broken), computed_by(predictor, began))


def _check_measures(names: Sequence[str], **options: str | None) -> None:
    """Refuse measures that do not exist, and options that none of these measures reads.

    Args:
        options: by name, None where they are left out.
    """
    for name in names:
        if name not in _READS:
            raise UserError(f'there is no measure "{name}"{nearest(name, _READS)}')
    for option in (name for name, value in options.items() if value is not None):
        reader = next(name for name, read in _READS.items() if option in read)
        if reader not in names:
            computed = ", ".join(names)
            raise UserError(f"--{option} is for {reader}, which is not computed here ({computed}); leave it out")


class _Means:
    """Sums of the measures over rows."""

    def __init__(self) -> None:
        self.rows, self.images, self._sums = 0, set[str](), dict[str, float]()

    def add(self, record: dict[str, Any]) -> None:
        self.rows += 1
        self.images.add(record["image"])
        for name in _MEANS:
            if name in record:
                self._sums[name] = self._sums.get(name, 0.0) + record[name]

    @property
    def means(self) -> dict[str, float]:
        return {name: total / self.rows for name, total in self._sums.items()}


def _windows(pairs: Iterator[Pair | BrokenSample]) -> Iterator[list[Pair | BrokenSample]]:
    """Rows in pieces that fit in memory."""
    window: list[Pair | BrokenSample] = []
    held = 0
    for one in pairs:
        window.append(one)
        image = getattr(one, "image", None)
        held += len(image) if isinstance(image, bytes) else 0
        if len(window) == _WINDOW_ROWS or held > _WINDOW_BYTES:
            yield window
            window, held = [], 0
    if window:
        yield window


def _score_window(
    window: list[Pair | BrokenSample],
    predictor: Predictor,
    scorer: Scorer,
    take: Callable[[tuple[Pair, Score] | BrokenSample], None],
) -> None:
    """Take each row with its score, or why it cannot be used, in order; rows of one image share its encoding."""
    from openblip.core.sharing import in_turns
    from openblip.data.image_inputs import ImageInput
    from openblip.data.sample import BrokenSample

    @cache
    def refused(text: str) -> str:
        try:
            scorer.check(text)
        except UserError as error:
            return str(error)
        return ""

    results: dict[int, Score | BrokenSample] = {}
    rows_of: dict[str, list[tuple[int, Pair]]] = {}
    images: list[ImageInput] = []
    for row, one in enumerate(window):
        if isinstance(one, BrokenSample):
            results[row] = one
        elif why := refused(one.text):
            results[row] = BrokenSample("bad-text", one.place, why)
        else:
            name = _name_of(one.image)
            if name not in rows_of:
                images.append(ImageInput(name, one.image))
            rows_of.setdefault(name, []).append((row, one))
    given = 0

    def work(own: list[ImageInput]) -> Generator[dict[int, Score | BrokenSample], None, None]:
        for batch in predictor.batches(own):
            found: dict[int, Score | BrokenSample] = {}
            for sample in batch.broken:
                for row, pair in rows_of[sample.key]:
                    found[row] = BrokenSample(sample.cause, pair.place, f"{pair.name}: {sample.detail}")
            rows = [own for name in batch.names for own in rows_of[name]]
            if rows:
                owners = [place for place, name in enumerate(batch.names) for _ in rows_of[name]]
                scores = scorer(predictor.encode(batch), [pair.text for _, pair in rows], owners)
                found |= {row: score for (row, _), score in zip(rows, scores, strict=True)}
            yield found

    def give(found: dict[int, Score | BrokenSample]) -> None:
        nonlocal given
        results.update(found)
        while given in results:
            pair, result = window[given], results.pop(given)
            if isinstance(result, BrokenSample):
                take(result)
            else:
                assert not isinstance(pair, BrokenSample)
                take((pair, result))
            given += 1

    in_turns(images, predictor.batch_size, work, give)
    if is_first():
        give({})


def _name_of(image: ImageLike) -> str:
    """What is equal for equal images."""
    from openblip.core.fingerprint import short_hash

    if isinstance(image, Path):
        return str(image)
    return short_hash(image) if isinstance(image, bytes) else f"#{id(image)}"


def _record(pair: Pair, result: Score, *, text_ids: bool) -> dict[str, Any]:
    """A result as it is written, without the measures that were not computed."""
    called = None if pair.id is None else {"id": str(pair.id) if text_ids else pair.id}
    values = {
        "itm": result.itm_probability,
        "itc": result.itc_similarity,
        "log_prob": result.log_prob,
        "num_tokens": result.num_tokens,
        "log_prob_per_token": result.log_prob_per_token,
        "vqa": result.vqa_probability,
    }
    # By significant digits: a VQAScore may be far below 1e-6.
    measures = {
        name: float(f"{value:.8g}") if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }
    return {"row": pair.row, **(called or {}), "image": pair.name, "text": pair.text, **measures}
