"""Commands that use a model on images: `match`, `ask`, `embed` and `retrieve`.

On a terminal they print lines to read; into a pipe or a file they print JSON, one object a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from openblip.cli.arguments import (
    WHAT_IMAGES,
    Device,
    Dtype,
    ImagePaths,
    Model,
    Out,
    Prompt,
    Quantize,
    Texts,
    Tokenizer,
    decoding,
    need,
    person,
    with_family_defaults,
)
from openblip.cli.launched import find_shared_images, join
from openblip.cli.results import (
    Row,
    check_counts,
    conclude,
    each_batch,
    open_predictor,
    read_lines,
    scores_line,
    tell,
    tell_left_out,
)
from openblip.core.errors import UserError
from openblip.core.text import json_bytes, rounded

if TYPE_CHECKING:
    from openblip.data.image_inputs import ImageBatch

__all__ = ["ask", "embed", "match", "retrieve"]


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
            scores = [{"text": m.text, "itm": m.itm_probability, "itc": m.itc_similarity} for m in matches]
            yield "\n".join([name, *lines]), {"image": name, "matches": rounded(scores)}

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
    beams: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    length_penalty: Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    min_new_tokens: int = 1,
    max_new_tokens: int = 10,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
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
        beams: texts that the beam search keeps; 1 is greedy; left out, 3, and 5 for BLIP-2.
        length_penalty: as for caption; left out, as in the papers: 1, for BLIP-2 0, or -1 behind FlanT5.
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
    predictor = open_predictor(
        model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size, quantize=quantize
    )
    usual = predictor.adapter
    if prompt is not None and not (usual.question_prompt and "{}" in prompt):
        raise UserError(
            '--prompt tells BLIP-2\'s language model a question, with {} in its place: "Question: {} Answer:"'
        )
    penalty = usual.answering.length_penalty if length_penalty is None else length_penalty
    config = with_family_defaults(config, usual.answering, beams, None, {})
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
                    {"text": a.text, "log_prob": round(a.log_prob, 4), "probability": rounded(a.probability)}
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
        return line, {kind: name, "embedding": rounded(vector)}

    def rows(batch: ImageBatch) -> Iterator[Row]:
        for name, vector in zip(batch.names, predictor.embed_images(batch).tolist(), strict=True):
            yield row("image", name, vector)

    each_batch(predictor, found, rows, out=out, before=(row("text", *pair) for pair in texts))


def retrieve(
    query: Annotated[Positional[str], arg(metavar="QUERY", help_behavior_hint="")],
    images: Annotated[tuple[str, ...], arg(metavar="[IMAGE ...]", help_behavior_hint="")] = (),
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
        rerank: candidates that ITM reads, the others follow by ITC; 0 orders by ITC alone.
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
            line = scores_line(hit.score, hit.itc_similarity, hit.itm_probability)
            print(f"{place:3d}. {hit.item}   {line}")
        else:
            scores = {"score": hit.score, "itc": hit.itc_similarity, "itm": hit.itm_probability}
            print(json_bytes({"rank": place, "item": hit.item, **rounded(scores)}).decode())
    if texts is None:
        conclude(candidates, broken, predictor.computing)
