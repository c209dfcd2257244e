"""Commands that use a model on images: `match`, `ask`, `embed`, `retrieve` and `evaluate`.

On a terminal they print lines to read; into a pipe or a file they print JSON, one object a line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from openblip.cli.arguments import (
    WHAT_IMAGES,
    Data,
    Device,
    Dtype,
    ImagePaths,
    Model,
    Out,
    Prompt,
    Texts,
    Tokenizer,
    decoding,
    need,
    person,
)
from openblip.cli.evaluated import default_samples, measured_task, result_of
from openblip.cli.launched import find_shared_images, is_first, join
from openblip.cli.results import (
    Row,
    check_counts,
    conclude,
    each_batch,
    open_predictor,
    read_lines,
    show_table,
    tell,
    tell_left_out,
)
from openblip.core.errors import UserError
from openblip.core.text import counted, json_bytes

if TYPE_CHECKING:
    from openblip.data.image_inputs import ImageBatch
    from openblip.data.measured import Measured
    from openblip.metrics.results import Result

__all__ = ["ask", "embed", "evaluate", "match", "retrieve"]

_MOST_TOLD = 5
"""of what a measure had to leave out, one by one"""


def match(
    images: ImagePaths = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    text: Texts = (),
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Say how well texts fit images: ITM probability and ITC similarity.

    Args:
        images: files, folders, globs, tars, or - for a list on standard input.
        text: a text to match with every image.
        batch_size: images at a time.

    Under torchrun the processes share the images out; the results are those of one process.
    """
    need(images, WHAT_IMAGES)
    need(text, 'at least one text: --text "a red bus"')
    found = find_shared_images(images, device)
    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size)

    def rows(batch: ImageBatch) -> Iterator[Row]:
        for name, matches in zip(batch.names, predictor.match(batch, text), strict=True):
            lines = [f"  {m.itm_probability:6.1%}  {m.itc_similarity:+.3f}  {m.text}" for m in matches]
            scores = [
                {"text": m.text, "itm": round(m.itm_probability, 6), "itc": round(m.itc_similarity, 6)}
                for m in matches
            ]
            yield "\n".join([name, *lines]), {"image": name, "matches": scores}

    each_batch(predictor, found, rows, out=out)


def ask(
    images: ImagePaths = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    question: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="TEXT", help_behavior_hint="(repeat it for more)")
    ] = (),
    answers: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    prompt: Prompt = None,
    num_answers: int = 1,
    keep: int = 128,
    beams: int = 3,
    length_penalty: float | None = None,
    min_new_tokens: int = 1,
    max_new_tokens: int = 10,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Answer questions about images, freely or with one of given answers.

    Args:
        images: files, folders, globs, tars, or - for a list on standard input.
        question: a question to ask about every image.
        answers: choose among the lines of this file, ranked by likelihood, instead of writing freely.
        prompt: how BLIP-2's language model is asked, {} in place of the question; left out, as it was trained.
        num_answers: the best so many are given for each question.
        keep: of the answers in the file, those that are read whole, chosen by their first token.
        beams: texts that the beam search keeps; 1 is greedy.
        length_penalty: as for caption; left out, 1, and 0 for BLIP-2, as in the papers.
        min_new_tokens: shortest answer.
        max_new_tokens: longest answer.
        batch_size: images at a time.

    Under torchrun the processes share the images out; the results are those of one process.
    """
    need(images, WHAT_IMAGES)
    need(question, 'at least one question: --question "what color is the bus?"')
    check_counts(num_answers=num_answers, keep=keep)
    from dataclasses import replace

    config = decoding(beams, num_answers, min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens)
    candidates = None if answers is None else read_lines(answers, "answers to choose from")
    found = find_shared_images(images, device)
    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size)
    usual = predictor.adapter
    if prompt is not None and not (usual.question_prompt and "{}" in prompt):
        raise UserError(
            '--prompt tells BLIP-2\'s language model a question, with {} in its place: "Question: {} Answer:"'
        )
    penalty = usual.answering.length_penalty if length_penalty is None else length_penalty
    how: dict[str, Any] = {"config": replace(config, length_penalty=penalty), "keep": keep}
    if prompt is not None:
        how["prompt"] = prompt

    def rows(batch: ImageBatch) -> Iterator[Row]:
        asked = predictor.answer(batch, question, candidates, **how)
        for name, answered in zip(batch.names, asked, strict=True):
            lines, records = [name], []
            for one in answered:
                best = one.answers[:num_answers]
                lines.append(f"  {one.question}  " + ", ".join(f"{a.text} ({a.probability:.0%})" for a in best))
                told = [
                    {"text": a.text, "log_prob": round(a.log_prob, 4), "probability": round(a.probability, 6)}
                    for a in best
                ]
                records.append({"question": one.question, "answers": told})
            yield "\n".join(lines), {"image": name, "questions": records}

    each_batch(predictor, found, rows, out=out)


def embed(
    images: ImagePaths = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    text: Texts = (),
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Out = None,
) -> None:
    """Embed images and texts for search: vectors of length 1, whose products are ITC similarities.

    Args:
        images: files, folders, globs, tars, or - for a list on standard input.
        text: a text to embed.
        batch_size: images at a time.

    Under torchrun the processes share the images out; the results are those of one process.
    """
    need((*images, *text), f'{WHAT_IMAGES}, or texts: --text "a red bus"')
    from openblip.data.image_inputs import FoundImages

    join(device)
    found = find_shared_images(images, device) if images else FoundImages()
    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size)
    texts = zip(text, predictor.embed_texts(text).tolist(), strict=True) if text else ()

    def row(kind: str, name: str, vector: list[Any]) -> Row:
        one = vector[0] if isinstance(vector[0], list) else vector  # BLIP-2 gives one for each query
        count = f"{len(vector)} times " if one is not vector else ""
        line = f"{name}: {count}{len(one)} numbers, {one[0]:+.3f} {one[1]:+.3f} ... {one[-1]:+.3f}"
        return line, {kind: name, "embedding": _rounded(vector)}

    def rows(batch: ImageBatch) -> Iterator[Row]:
        for name, vector in zip(batch.names, predictor.embed_images(batch).tolist(), strict=True):
            yield row("image", name, vector)

    each_batch(predictor, found, rows, out=out, before=(row("text", *pair) for pair in texts))


def _rounded(values: list[Any]) -> list[Any]:
    return [_rounded(value) if isinstance(value, list) else round(value, 6) for value in values]


def retrieve(
    query: Annotated[Positional[str], arg(metavar="QUERY", help_behavior_hint="")],
    images: ImagePaths = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    texts: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    image: Annotated[str | None, arg(metavar="IMAGE", help_behavior_hint="")] = None,
    top: int = 5,
    rerank: int = 32,
    batch_size: int = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Search images for a text, texts for an image (--texts), or images for an image and a text (--image).

    Args:
        query: a text; with --texts, the path of an image.
        images: to search: files, folders, globs, tars, or - for a list on standard input.
        texts: search the lines of this file instead of images.
        image: BLIP-2: the query says how this image is to change (composed retrieval).
        top: results to print, the best first.
        rerank: candidates that ITM reads; 0 orders by ITC alone.
        batch_size: images at a time.
    """
    lines: list[str] = []
    if texts is not None and image is not None:
        raise UserError("--image starts from an image and searches images; leave --texts out")
    if texts is None:
        need(images, f"{WHAT_IMAGES} to search")
    elif images:
        raise UserError("--texts searches the lines of a file: name images or --texts, not both")
    else:
        lines = read_lines(texts, "texts to search")
    check_counts(top=top)
    check_counts(0, rerank=rerank)
    from openblip.data.image_inputs import FoundImages, find_image_inputs
    from openblip.data.sample import BrokenSample

    candidates = find_image_inputs(images) if texts is None else FoundImages()
    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size)
    broken: list[BrokenSample] = []
    tell_left_out(candidates)
    if image is not None:
        found = predictor.retrieve_composed(candidates, image, query, top=top, broken=broken)
    elif texts is not None:
        found = predictor.retrieve_texts(query, lines, top=top, rerank_k=rerank)
    else:
        found = predictor.retrieve_images(candidates, [query], top=top, rerank_k=rerank, broken=broken)[0]
    for sample in broken:
        tell(sample)
    for place, hit in enumerate(found, 1):
        if person():
            score = "" if image is None else f"score {hit.score:.3f}   "
            itm = "" if hit.itm_probability is None else f"  ITM {hit.itm_probability:6.1%}"
            print(f"{place:3d}. {hit.item}   {score}ITC {hit.itc_similarity:+.3f}{itm}")
        else:
            record = {"rank": place, "item": hit.item, "itc": hit.itc_similarity, "itm": hit.itm_probability}
            print(json_bytes(record | ({} if image is None else {"score": hit.score})).decode())
    if texts is None:
        conclude(candidates, broken, predictor.computing)


def evaluate(
    data: Data = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    samples: int | None = None,
    rerank: int = 16,
    beams: int = 3,
    max_new_tokens: int = 20,
    meteor: bool = False,
    spice: bool = False,
    answers: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    submission: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    device: Device = "auto",
) -> None:
    """Measure a model: caption metrics, retrieval recall with and without ITM, ITM accuracy; accuracy of answers,
    of judgements, of zero-shot classes (imagenet:val, "photos/?classes=folder"); composed retrieval (cirr:val).

    Args:
        data: image-text data, as for train; for a VQA model questions with answers or dialogs, for an NLVR2 model
            labelled statements.
        samples: images to use, from the first; left out, all of a published split, 1,000 of other data.
        rerank: candidates that ITM reads for each query; 0 leaves re-ranking out.
        beams: of the captions, or answers.
        max_new_tokens: longest caption, or answer.
        meteor: of captions, by its Java program (pip install "openblip[java-metrics]").
        spice: of captions, likewise.
        answers: of a VQA model: rank the lines of this file; left out, the answers that it was trained with.
        submission: a new file of the predictions for a whole split of a published dataset, for its evaluation
            server.
        out: folder of results: one JSON file, and its predictions beside it, in place of those of an equal
            evaluation; openblip report FOLDER makes tables of many. What had to be left out is listed, and the exit
            code 1.

    Under torchrun the processes share the data out; the figures are those of one process.
    """
    samples = default_samples(data) if samples is None else samples
    need(data, "the data to measure on: a folder, a captions file, tars, hf:NAME or world:test")
    check_counts(samples=samples)
    check_counts(0, rerank=rerank)
    from openblip.data.measured import Measured
    from openblip.tasks.answering import MAX_LENGTH
    from openblip.tasks.classification import class_names
    from openblip.tasks.config import RunConfig, as_sources
    from openblip.tasks.dialog import HISTORY
    from openblip.tasks.load import load
    from openblip.tasks.submission import submission_format, submit
    from openblip.tasks.training import evaluate_model

    sources = as_sources(data)
    form = submission_format(sources, submission) if submission is not None else ""
    join(device)
    adapter = load(model, tokenizer=tokenizer, device=device, dtype="float32").adapter
    task = measured_task(model, adapter, sources, form)
    asks = task == "answering"
    candidates = adapter.info.get("answers", ()) if answers is None else read_lines(answers, "answers to rank")
    candidates = class_names(sources) if task == "classification" else candidates
    least = 0 if asks else min(2, adapter.captioning.min_new_tokens)
    config = RunConfig(
        family=adapter.family,
        task=task,
        sources=sources,
        validation=sources,
        validation_samples=sys.maxsize if form or task == "composed" else samples,  # whole, as is a gallery
        rerank_k=rerank,
        java_metrics=(*(("METEOR",) if meteor else ()), *(("SPICE",) if spice else ())),
        prompt=adapter.question_prompt if asks else adapter.prompt,
        max_length=min({"answering": MAX_LENGTH, "dialog": HISTORY}.get(task, 64), adapter.max_positions),
        clean=adapter.info.get("clean", "simplify"),
        decode=decoding(beams, 1, max_new_tokens=max_new_tokens, min_new_tokens=least),
    )
    measured = Measured()
    metrics, records = evaluate_model(config, adapter, answers=candidates, measured=measured)
    if not is_first():
        return
    with ExitStack() as last:
        if submission is not None:  # at the end: what was computed is kept where it is refused
            last.callback(submit, submission, form, records, config.validation)
        result = None if out is None else result_of(model, adapter, config, metrics, measured, len(candidates))
        _report_measures(model, data, result, metrics, records, measured, out)


def _report_measures(
    model: str,
    data: tuple[str, ...],
    result: Result | None,
    metrics: dict[str, float],
    records: list[dict[str, object]],
    measured: Measured,
    out: Path | None,
) -> None:
    """Write and print the figures; exit with 1 when the measure had to leave something out."""
    from openblip.metrics.results import write_result

    if unanswered := int(metrics.get("num_unanswered", 0)):
        without = f"{counted(unanswered, 'question')} without answers in the data"
        print(f"openblip: {without}: predictions only", file=sys.stderr)
    if undescribed := int(metrics.get("num_without_captions", 0)):
        without = f"{counted(undescribed, 'image')} without captions in the data"
        print(f"openblip: {without}: predictions only", file=sys.stderr)

    left_out = {"left_out": measured.left_out} if measured.left_out else {}
    file = None
    if out is not None and result is not None:
        file = write_result(out, result, records)
        print(f"openblip: the result is in {file}", file=sys.stderr)
    if person():
        rows = {name: f"{value:.4f}" for name, value in metrics.items()}
        show_table(f"{model} on {', '.join(data)}", ("measure", "value"), rows)
    else:
        print(json.dumps({**metrics, **left_out}, ensure_ascii=False))
    if measured.left_out:
        _tell_incomplete(measured, file)
        raise SystemExit(1)


def _tell_incomplete(measured: Measured, file: Path | None) -> None:
    """Say on standard error what a measure was made without."""
    from openblip.data.sample import BrokenSample

    found = measured.left_out
    for one in found[:_MOST_TOLD]:
        tell(BrokenSample(one["cause"], one["key"], one["detail"]))
    causes = ", ".join(f"{count} {cause}" for cause, count in measured.counts.most_common())
    where = "; these are not the figures of the whole split"
    where += f", and {file} lists all" if file is not None else ""
    without = f"without {len(found)} that cannot be used ({causes})"
    print(f"openblip: measured on {counted(measured.num_images, 'image')}, {without}{where}", file=sys.stderr)
