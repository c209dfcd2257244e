"""Commands that use a model: `caption`, `match`, `retrieve`, `evaluate` and `info`.

On a terminal they print lines to read; into a pipe or a file they print JSON, one object a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from openblip.cli.arguments import Data, Device, Dtype, Model, Pictures, Texts, need, person
from openblip.core.errors import UserError

__all__ = ["caption", "evaluate", "info", "match", "retrieve"]

Rows = Callable[[list[str]], Iterator[tuple[str, dict[str, Any]]]]
WHAT_PICTURES = "the pictures: files, folders or globs"


def caption(
    pictures: Pictures = (),
    /,
    *,
    model: Model,
    prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    beams: int = 3,
    nucleus: Annotated[float | None, arg(metavar="P", help_behavior_hint="")] = None,
    num_captions: int = 1,
    min_new_tokens: int = 5,
    max_new_tokens: int = 20,
    seed: int = 0,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Write captions for pictures.

    Args:
        pictures: files, folders or globs.
        prompt: how captions begin; left out, what the model was trained with.
        beams: texts that the beam search keeps; 1 is greedy.
        nucleus: sample instead, among the likeliest tokens that together reach this probability (the paper: 0.9).
        num_captions: for each picture: the best of the beams, or so many samples.
        min_new_tokens: shortest caption.
        max_new_tokens: longest caption.
        seed: of sampling; the same seed gives a picture the same captions in any batch.
        batch_size: pictures at a time.
    """
    from openblip.generation.types import DecodeConfig
    from openblip.tasks.predictor import Predictor

    need(pictures, WHAT_PICTURES)
    bounds: dict[str, Any] = {"min_new_tokens": min_new_tokens, "max_new_tokens": max_new_tokens, "seed": seed}
    if nucleus is not None:
        config = DecodeConfig(sample=True, top_p=nucleus, num_sequences=num_captions, **bounds)
    else:
        config = DecodeConfig(num_beams=max(beams, num_captions), num_sequences=num_captions, **bounds)
    predictor = Predictor.load(model, device=device, dtype=dtype, batch_size=batch_size)

    def rows(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, written in zip(names, predictor.caption(names, config, prompt=prompt), strict=True):
            texts = [{"text": c.text, "log_prob": round(c.log_prob, 4)} for c in written]
            yield f"{name}: " + "\n    ".join(c.text for c in written), {"image": name, "captions": texts}

    _each_batch(pictures, batch_size, rows)


def match(
    pictures: Pictures = (),
    /,
    *,
    model: Model,
    text: Texts = (),
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Say how well texts fit pictures: ITM probability and ITC similarity.

    Args:
        pictures: files, folders or globs.
        text: a text to match with every picture.
        batch_size: pictures at a time.
    """
    from openblip.tasks.predictor import Predictor

    need(pictures, WHAT_PICTURES)
    need(text, 'at least one text: --text "a red bus"')
    predictor = Predictor.load(model, device=device, dtype=dtype, batch_size=batch_size)

    def rows(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, found in zip(names, predictor.match(names, text), strict=True):
            lines = [f"  {m.itm_probability:6.1%}  {m.itc_similarity:+.3f}  {m.text}" for m in found]
            scores = [
                {"text": m.text, "itm": round(m.itm_probability, 6), "itc": round(m.itc_similarity, 6)}
                for m in found
            ]
            yield "\n".join([name, *lines]), {"image": name, "matches": scores}

    _each_batch(pictures, batch_size, rows)


def retrieve(
    query: Annotated[Positional[str], arg(metavar="QUERY", help_behavior_hint="")],
    pictures: Pictures = (),
    /,
    *,
    model: Model,
    texts: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    top: int = 5,
    rerank: int = 32,
    batch_size: int = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Search pictures for a text, or texts for a picture (with --texts).

    Args:
        query: a text; with --texts, the path of a picture.
        pictures: files, folders or globs to search.
        texts: search the lines of this file instead of pictures.
        top: results to print, the best first.
        rerank: candidates that ITM reads; 0 orders by ITC alone.
        batch_size: pictures at a time.
    """
    from openblip.tasks.predictor import Predictor, find_images

    if texts is None:
        need(pictures, f"{WHAT_PICTURES} to search")
        names = find_images(pictures)
    elif pictures:
        raise UserError("--texts searches the lines of a file: name pictures or --texts, not both")
    else:
        lines = _lines(texts)
    _check_counts(top=top, batch_size=batch_size)
    predictor = Predictor.load(model, device=device, dtype=dtype, batch_size=batch_size)
    skipped = 0
    if texts is not None:
        found = predictor.retrieve_texts(query, lines, top=top, rerank_k=rerank)
    else:
        try:
            found = predictor.retrieve_images(names, [query], top=top, rerank_k=rerank)[0]
        except UserError:
            good = _readable(names)
            skipped = len(names) - len(good)
            if not skipped:
                raise  # it was not a picture's fault
            found = predictor.retrieve_images(good, [query], top=top, rerank_k=rerank)[0]
    for place, hit in enumerate(found, 1):
        if person():
            itm = "" if hit.itm_probability is None else f"  ITM {hit.itm_probability:6.1%}"
            print(f"{place:3d}. {hit.item}   ITC {hit.itc_similarity:+.3f}{itm}")
        else:
            record = {"rank": place, "item": hit.item, "itc": hit.itc_similarity, "itm": hit.itm_probability}
            print(json.dumps(record, ensure_ascii=False))
    _conclude(len(names) if texts is None else 0, skipped)


def evaluate(
    data: Data = (),
    /,
    *,
    model: Model,
    samples: int = 1000,
    rerank: int = 16,
    beams: int = 3,
    max_new_tokens: int = 20,
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    device: Device = "auto",
) -> None:
    """Measure a model: caption metrics, retrieval recall with and without ITM, ITM accuracy.

    Args:
        data: image-text data, as for pretrain.
        samples: pictures to use, from the first.
        rerank: candidates that ITM reads for each query; 0 leaves re-ranking out.
        beams: of the captions.
        max_new_tokens: longest caption.
        out: folder for metrics.json and predictions.jsonl.
    """
    from openblip.core.files import write_json, write_text
    from openblip.generation.types import DecodeConfig
    from openblip.tasks.predictor import Predictor
    from openblip.tasks.run import RunConfig, as_sources, evaluate_model

    need(data, "the data to measure on: a folder, a captions file, tars, hf:NAME or world:test")
    _check_counts(samples=samples)
    predictor = Predictor.load(model, device=device, dtype="float32")
    config = RunConfig(
        sources=as_sources(data),
        validation=as_sources(data),
        validation_samples=samples,
        rerank_k=rerank,
        prompt=predictor.prompt,
        max_length=min(64, predictor.model.config.text.max_positions),
        clean=predictor.info.get("clean", "simplify"),
        decode=DecodeConfig(num_beams=beams, max_new_tokens=max_new_tokens, min_new_tokens=2),
    )
    numbers, records = evaluate_model(config, predictor.model, predictor.tokenizer)
    if out is not None:
        write_json(out / "metrics.json", {"model": model, "data": list(data), "samples": samples, **numbers})
        write_text(
            out / "predictions.jsonl",
            "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
        )
    if person():
        _table(f"{model} on {', '.join(data)}", numbers)
    else:
        print(json.dumps(numbers))


def info(model: Annotated[Positional[str], arg(metavar="MODEL", help_behavior_hint="")], /) -> None:
    """Say what a model is: sizes, parameters, tokenizer, what it can do.

    Args:
        model: a model's folder, or an original BLIP checkpoint (.pth).
    """
    from openblip.checkpoints.store import open_model
    from openblip.core.config import to_dict

    stored = open_model(model)
    config = stored.model.config
    described = {
        "parameters": sum(parameter.numel() for parameter in stored.model.parameters()),
        "can": [name for name, has in (("match", config.encoder), ("caption", config.decoder)) if has],
        "vocab_size": stored.tokenizer.vocab_size,
        "ignored_keys": stored.ignored,
        "model": to_dict(config),
        "info": stored.info,
    }
    print(json.dumps(described, indent=2, ensure_ascii=False))


def _table(title: str, numbers: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise UserError(f"there is no file {file} with texts to search")
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}") from error
    if not lines:
        raise UserError(f"{file} holds no text")
    return lines


def _each_batch(places: tuple[str, ...], batch_size: int, rows: Rows) -> None:
    """Go through the pictures a batch at a time and print each result; unreadable pictures are counted."""
    from openblip.tasks.predictor import find_images

    _check_counts(batch_size=batch_size)
    names = find_images(places)
    skipped = 0
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        try:
            results = list(rows(batch))
        except UserError:
            if len(names) == 1:
                raise
            good = _readable(batch)
            if len(good) == len(batch):
                raise  # it was not a picture's fault
            skipped += len(batch) - len(good)
            results = list(rows(good)) if good else []
        for line, record in results:
            print(line if person() else json.dumps(record, ensure_ascii=False), flush=True)
    _conclude(len(names), skipped)


def _readable(names: list[str]) -> list[str]:
    """Those of `names` that are pictures; says of the others what is wrong."""
    from openblip.data.images import decode_image
    from openblip.data.sample import BrokenSample

    good = []
    for name in names:
        try:
            decode_image(Path(name))
            good.append(name)
        except BrokenSample as broken:
            print(f"openblip: skipped {name} ({broken.cause}): {broken.detail}", file=sys.stderr)
    return good


def _conclude(total: int, skipped: int) -> None:
    """Exit with 1 when some pictures were left out, with 2 when all were."""
    if skipped and skipped == total:
        raise UserError(f"none of the {total} pictures can be used")
    if skipped:
        print(f"openblip: {total - skipped} pictures done, {skipped} skipped", file=sys.stderr)
        raise SystemExit(1)
