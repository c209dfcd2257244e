"""The command `caption`: captions as lines, as JSON, or in text files of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from openblip.cli.arguments import (
    WHAT_IMAGES,
    CudaGraphs,
    Device,
    Dtype,
    ImagePaths,
    Model,
    Prompt,
    Quantize,
    Tokenizer,
    decoding,
    need,
    with_family_defaults,
)
from openblip.cli.launched import find_shared_images, is_first, shared
from openblip.cli.results import Row, each_batch, open_predictor, tell_left_out
from openblip.cli.resumed import begin_or_continue, only_writer
from openblip.core.errors import UserError
from openblip.core.text import counted

if TYPE_CHECKING:
    from openblip.data.image_inputs import FoundImages, ImageBatch
    from openblip.data.sinks.beside import Plan, TextFiles
    from openblip.generation.config import DecodeConfig
    from openblip.tasks.predictor import Predictor

__all__ = ["caption", "check_recorded"]

Share = Annotated[float | None, arg(metavar="P", help_behavior_hint="")]
_SCHEMA = {"image": "string", "captions": [{"text": "string", "log_prob": "float"}]}
Words = Annotated[str, arg(metavar="TEXT", help_behavior_hint="")]


def caption(
    images: ImagePaths = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    prompt: Prompt = None,
    beams: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    nucleus: Share = None,
    num_captions: int = 1,
    min_new_tokens: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    max_new_tokens: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    length_penalty: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "none",
    cuda_graphs: CudaGraphs = False,
    write: Literal["json", "txt"] = "json",
    existing: Literal["skip", "overwrite", "append"] = "skip",
    extension: str = ".txt",
    prefix: Words = "",
    suffix: Words = "",
    out: Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")] = None,
    resume: bool = False,
) -> None:
    """Write captions for images.

    Args:
        images: files, folders, globs, tars, or - for a list on standard input.
        prompt: how captions begin; left out, what the model was trained with.
        beams: texts that the beam search keeps; 1 is greedy; left out, 3, and 5 for BLIP-2.
        nucleus: sample instead, among the likeliest tokens that together reach this probability (the paper: 0.9).
        num_captions: for each image: the best of the beams, or so many samples.
        min_new_tokens: shortest caption; left out, 5, and any length for BLIP-2.
        max_new_tokens: longest caption; left out, 20, and 30 for BLIP-2.
        repetition_penalty: above 1 makes what was written already less likely.
        no_repeat_ngram: no sequence of so many tokens is written twice; 3 is usual for long captions, 0 allows all.
        length_penalty: beams compare log-probability / length ** this; below 1 prefers short captions.
        seed: of sampling; the same seed gives an image the same captions in any batch.
        batch_size: images at a time.
        write: txt puts NAME.txt beside each image, one caption on each line; the same command resumes.
        existing: with --write txt, what to do with a file that exists; append adds the lines that it lacks.
        extension: with --write txt, of the files.
        prefix: with --write txt, text before each caption, such as "mytoken, ".
        suffix: with --write txt, text after each caption.
        out: a new file for the results: .parquet, else one JSON object a line; with --write txt, a folder in which
            the texts lie as the images do in theirs.
        resume: continue the file --out where the same command was stopped; give it in the first run too.

    Under torchrun the processes share the images out; the results are those of one process.
    """
    need(images, WHAT_IMAGES)
    if write != "txt" and (existing, extension, prefix, suffix) != ("skip", ".txt", "", ""):
        raise UserError("--existing, --extension, --prefix and --suffix are for text files: add --write txt")
    lengths = {"min_new_tokens": min_new_tokens, "max_new_tokens": max_new_tokens}
    if resume and (out is None or write == "txt"):
        raise UserError(
            "--resume is for a file of JSON lines, --out FILE.jsonl; with --write txt every run resumes"
        )
    config = decoding(
        beams,
        num_captions,
        nucleus,
        **{name: value for name, value in lengths.items() if value is not None},
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
        length_penalty=length_penalty,
        seed=seed,
    )
    files: TextFiles | None = None
    plan: Plan | None = None
    if write == "txt":
        from openblip.data.sinks.beside import TextFiles

        files = TextFiles(images, out, extension, existing, prefix, suffix)
    found = find_shared_images(images, device)
    if files is not None:
        plan = shared(lambda: files.plan(found))
        _tell_plan(plan, len(found))
        found = plan.images
    if not found:
        _end_without_work(found)
        return
    predictor = open_predictor(
        model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        quantize=quantize,
        cuda_graphs=cuda_graphs,
    )
    if cuda_graphs:
        check_recorded(predictor)
    config = with_family_defaults(config, predictor.adapter.captioning, beams, nucleus, lengths)

    def rows(batch: ImageBatch) -> Iterator[Row]:
        for name, written in zip(batch.names, predictor.caption(batch, config, prompt=prompt), strict=True):
            record = {"image": name, "captions": [_told(c.text, c.log_prob) for c in written]}
            if files is not None and plan is not None:
                files.write(plan.files[name], (c.text for c in written))
                record["file"] = str(plan.files[name])
            yield f"{name}: " + "\n    ".join(c.text for c in written), record

    if not resume or out is None:
        each_batch(predictor, found, rows, out=out if files is None else None, schema=_SCHEMA)
        return
    with only_writer(out) if is_first() else nullcontext():
        settings = _settings(predictor, model, config, prompt, quantize)
        there = shared(lambda: begin_or_continue(out, "image", settings))
        left = _left_of(found, there)
        if not left:
            _end_without_work(left)
            return
        each_batch(predictor, left, rows, out=out, schema=_SCHEMA, done_before=len(found) - len(left))


def check_recorded(predictor: Predictor) -> None:
    """Refuse CUDA graphs for a model whose steps are not recorded."""
    from openblip.checkpoints.recognise import describe

    if not predictor.adapter.records_steps:
        raise UserError(
            "--cuda-graphs is for BLIP's captions and for BLIP-2's decoders that are not quantized, and this is "
            f"{describe(predictor.model.config)}; leave it out"
        )


def _told(text: str, log_prob: float) -> dict[str, str | float]:
    return {"text": text, "log_prob": round(log_prob, 4)}


def _settings(
    predictor: Predictor, model: str, config: DecodeConfig, prompt: str | None, quantize: str
) -> dict[str, Any]:
    """What captions depend on; weights by their fingerprint, since another model may lie in the same place."""
    from openblip.checkpoints.stored import unique_state
    from openblip.core.config import to_dict
    from openblip.core.fingerprint import fingerprint
    from openblip.core.runtime import versions

    return {
        "model": model,
        "weights": fingerprint(sorted(unique_state(predictor.model).items())),
        "dtype": str(predictor.dtype).removeprefix("torch."),
        "quantize": quantize,
        "prompt": predictor.prompt if prompt is None else prompt,
        "decode": to_dict(config),
        "versions": versions(),
    }


def _left_of(images: FoundImages, done: set[str]) -> FoundImages:
    """The images that have no result yet; says on standard error how many have one."""
    left = type(images)(image for image in images if image.name not in done)
    left.left_out = images.left_out
    if is_first() and len(left) < len(images):
        _tell_existing(len(images) - len(left), len(images), "captions")
    return left


def _tell_existing(number: int, total: int, what: str) -> None:
    have = "has" if number == 1 else "have"
    print(f"openblip: {number} of {counted(total, 'image')} {have} {what} already", file=sys.stderr)


def _tell_plan(plan: Plan, total: int) -> None:
    """Say on standard error which images need no caption."""
    if not is_first():
        return
    if plan.existing:
        _tell_existing(plan.existing, total, "a text")
    if plan.sharing:
        (name, owner), count = plan.sharing[0], len(plan.sharing)
        others = f", and {count - 1} more likewise" if count > 1 else ""
        print(f"openblip: {name} shares the text of {owner}{others}", file=sys.stderr)


def _end_without_work(images: FoundImages) -> None:
    """All texts are there; what cannot be used is told all the same, with exit code 1."""
    tell_left_out(images)
    if images.left_out.broken():
        raise SystemExit(1)
