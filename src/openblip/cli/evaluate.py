"""The command `evaluate`: the measures of a model on data, decoded as the papers do unless told otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from openblip.cli.arguments import Card, Data, Device, Dtype, Model, Prompt, Quantize, Tokenizer, need, person
from openblip.cli.evaluated import (
    ASKED,
    default_samples,
    measured_task,
    named_datasets,
    repeated_ids,
    result_of,
    retrieves,
)
from openblip.cli.launched import is_first, join
from openblip.cli.results import check_counts, read_lines, show_table, tell
from openblip.cli.usage import check_dry_run, show_usage
from openblip.core.errors import UserError
from openblip.core.text import counted, rounded

if TYPE_CHECKING:
    from openblip.data.measured import Measured
    from openblip.data.source_config import SourceConfig
    from openblip.generation.config import DecodeConfig
    from openblip.metrics.results import Result
    from openblip.tasks.config import RunConfig, TaskName
    from openblip.tasks.protocols import Adapter

__all__ = ["evaluate"]

_MOST_TOLD = 5
"""of what a measure had to leave out, one by one"""
Count = Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")]
Penalty = Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="")]


def evaluate(
    data: Data = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    samples: Count = None,
    rerank: Count = None,
    prompt: Prompt = None,
    beams: Count = None,
    min_new_tokens: Count = None,
    max_new_tokens: Count = None,
    repetition_penalty: Penalty = None,
    length_penalty: Penalty = None,
    meteor: bool = False,
    spice: bool = False,
    lemmas: bool = False,
    answers: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    submission: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    quantize: Quantize = "none",
    dry_run: bool = False,
    gpu: Card = None,
    gpus: Count = None,
    mfu: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None,
) -> None:
    """Measure a model: caption metrics, retrieval recall with and without ITM, ITM accuracy; accuracy of answers,
    of judgements, of zero-shot classes (imagenet:val, "photos/?classes=folder"); composed retrieval (cirr:val).

    Args:
        data: image-text data, as for train; for a VQA model questions with answers or dialogs, for an NLVR2 model
            labelled statements.
        samples: images to use, from the first; left out, all of a published split, 1,000 of other data.
        rerank: candidates that ITM reads for each query; 0 leaves re-ranking out. Left out, as in the papers on
            published data (256 for BLIP on COCO, else 128), and 16 on other data.
        prompt: how captions begin, or how BLIP-2's language model is asked, with {} in place of the question; left
            out, as the model was trained, and "a picture of " for published weights of BLIP.
        beams: of captions and answers. This and the four below are as in the papers where they are left out; the
            result says what was used.
        min_new_tokens: shortest caption, or answer.
        max_new_tokens: longest caption, or answer.
        repetition_penalty: above 1 makes what was written already less likely.
        length_penalty: beams compare log-probability / length ** this.
        meteor: of captions, by its Java program (pip install "openblip[java-metrics]").
        spice: of captions, likewise.
        lemmas: of generated answers: give the accuracy of their base forms by spaCy too, as LAVIS does on OK-VQA.
        answers: of a VQA model: rank the lines of this file; left out, the answers that it was trained with.
        submission: a new file of the predictions for a whole split of a published dataset, for its evaluation
            server.
        out: folder of results: one JSON file, and its predictions beside it, in place of those of an equal
            evaluation; openblip report FOLDER makes tables of many. What had to be left out is listed, and the exit
            code 1.
        dry_run: print what the evaluation takes, arithmetic, memory and hours on a card, and begin nothing: no
            weights are read into memory, no images. The options below are for this alone.
        gpu: the card: a100-40, a100-80, h100, h200, a6000, l40s or rtx4090; left out, h100.
        gpus: how many, one process each; left out, one.
        mfu: share of the card's arithmetic that is assumed to last; left out, 0.4.

    Under torchrun the processes share the data out; the figures are those of one process.
    """
    samples = default_samples(data) if samples is None else samples
    need(data, "the data to measure on: a folder, a captions file, tars, hf:NAME or world:test")
    check_counts(samples=samples)
    check_counts(0, **({} if rerank is None else {"rerank": rerank}))
    check_dry_run(dry_run, gpu=gpu, gpus=gpus, mfu=mfu)
    from openblip.data.measured import Measured
    from openblip.tasks.config import as_sources
    from openblip.tasks.submission import submission_format, submit
    from openblip.tasks.training import evaluate_model

    if lemmas and not dry_run:
        from openblip.metrics.lemmas import lemmatizer

        lemmatizer()  # refused here where spaCy is not there
    sources = as_sources(data)
    form = submission_format(sources, submission) if submission is not None else ""
    given = {
        "num_beams": beams,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "repetition_penalty": repetition_penalty,
        "length_penalty": length_penalty,
    }
    metrics_of_java = (*(("METEOR",) if meteor else ()), *(("SPICE",) if spice else ()))
    adapter, computed = _opened(model, tokenizer, device, dtype, quantize, dry_run=dry_run)
    task = measured_task(model, adapter, sources, form)
    config = replace(
        measuring_config(adapter, task, sources, prompt, rerank, given),
        validation_samples=sys.maxsize if form or task == "composed" else samples,  # whole, as is a gallery
        java_metrics=metrics_of_java,
    )
    config = replace(config, answering=replace(config.answering, lemmas=lemmas))
    candidates = _candidates(adapter, config, answers)
    if dry_run:
        _predict(adapter, config, data, computed, len(candidates), gpu=gpu, gpus=gpus, mfu=mfu)
        return
    if is_first() and (told := decoding_line(adapter, config)):
        print(f"openblip: {told}, {computed}", file=sys.stderr)
    if is_first() and task == "answering" and adapter.family == "blip" and not candidates:
        _tell_answer_list(named_datasets(sources))
    measured = Measured()
    metrics, records = evaluate_model(config, adapter, answers=candidates, measured=measured)
    if not is_first():
        return
    if repeated := repeated_ids(records):
        what = f"{counted(len(repeated), 'id')} more than once in the data, first {repeated[0]}"
        print(f"openblip: {what}: each is measured, and these are not official figures", file=sys.stderr)
    with ExitStack() as last:
        if submission is not None:  # at the end: what was computed is kept where it is refused
            last.callback(submit, submission, form, records, config.validation)
        result = None
        if out is not None:
            how: dict[str, Any] = {"dtype": computed, "repeated": repeated}
            result = result_of(model, adapter, config, metrics, measured, len(candidates), **how)
        _report_measures(model, data, task, result, metrics, records, measured, out)


def _tell_answer_list(datasets: Collection[str]) -> None:
    """Where the papers' figures are by ranking and there are no answers to rank."""
    if "vqav2" in datasets:
        from openblip.data.cards.answers import ANSWER_LIST

        hint = f"to rank answers too, pass --answers answer_list.json, from {ANSWER_LIST}"
        print(f"openblip: BLIP's figures on VQAv2 are by ranking; {hint}", file=sys.stderr)


def _opened(
    model: str, tokenizer: str | None, device: str, dtype: str, quantize: Quantize, *, dry_run: bool
) -> tuple[Adapter, str]:
    """The model, for --dry-run without its weights, and the dtype it computes in."""
    if dry_run:
        if quantize != "none":
            raise UserError("quantized language models are not predicted; leave --quantize out")
        from openblip.checkpoints.outline import outline
        from openblip.tasks.registry import adapt

        return adapt(outline(model)), "bfloat16" if dtype == "auto" else dtype
    from openblip.tasks.load import load

    join(device)
    predictor = load(model, tokenizer=tokenizer, device=device, dtype=dtype, quantize=quantize)
    bits = "" if quantize == "none" else f", language model in {quantize}"
    return predictor.adapter, str(predictor.dtype).removeprefix("torch.") + bits


def _candidates(adapter: Adapter, config: RunConfig, answers: Path | None) -> Sequence[str]:
    """Answers to rank, or the names of classes."""
    if config.task == "classification":
        from openblip.tasks.classification import class_names

        return class_names(config.sources)
    return adapter.info.get("answers", ()) if answers is None else read_lines(answers, "answers to rank")


def _predict(
    adapter: Adapter, config: RunConfig, data: tuple[str, ...], dtype: str, candidates: int, **card: Any
) -> None:
    """What `--dry-run` prints."""
    from openblip.core.compute import DTYPES
    from openblip.tasks.usage_of import count_data, evaluation_work

    counts = count_data(config.task, config.validation, samples=config.validation_samples)
    work = evaluation_work(adapter, config, counts, DTYPES[dtype], candidates=candidates)
    show_usage(", ".join(data), work, counts, **card)


def measuring_config(
    adapter: Adapter,
    task: TaskName,
    sources: tuple[SourceConfig, ...],
    prompt: str | None,
    rerank: int | None,
    given: Mapping[str, Any],
) -> RunConfig:
    """What a model is measured by: as the papers measure, with what is given (not None) in its place."""
    from openblip.tasks.config import DIALOG_TOKENS, QUESTION_TOKENS, AnsweringConfig, RunConfig
    from openblip.tasks.decoding import candidates_to_rerank, texts_to_retrieve

    datasets = named_datasets(sources)
    wording, decode = decoding_of(adapter, task, datasets, prompt, **given)
    words, tokens = texts_to_retrieve(adapter.family, datasets)
    published = adapter.info.get("source_format") in ("blip", "transformers")
    usual = AnsweringConfig.label_smoothing if published else 0.0  # where a model does not tell its own
    return RunConfig(
        family=adapter.family,
        task=task,
        sources=sources,
        validation=sources,
        rerank_k=candidates_to_rerank(adapter.family, datasets) if rerank is None else rerank,
        prompt=wording,
        max_length=min(
            {"answering": QUESTION_TOKENS, "dialog": DIALOG_TOKENS}.get(task, tokens), adapter.max_positions
        ),
        max_words=words,
        clean=adapter.info.get("clean", "simplify"),
        answering=AnsweringConfig(label_smoothing=adapter.info.get("label_smoothing", usual)),
        decode=decode,
    )


def decoding_of(
    adapter: Adapter, task: TaskName, datasets: Collection[str], prompt: str | None, **given: Any
) -> tuple[str, DecodeConfig]:
    """The prompt and the decoding of a measure: the papers', with what is `given` (not None) in its place.

    Raises:
        UserError: the model takes no such prompt, or writes nothing, or the settings contradict each other.
    """
    from openblip.tasks.decoding import caption_prompt, measured_decoding

    if prompt is not None and not _generates(adapter, task):
        raise UserError(
            f"--prompt would have no effect: measured by {task}, the model writes no text; leave it out"
        )
    asks = task == "answering"
    if prompt is not None and asks and not (adapter.question_prompt and "{}" in prompt):
        raise UserError(
            '--prompt tells BLIP-2\'s language model a question, with {} in its place: "Question: {} Answer:"'
        )
    usual = adapter.question_prompt if asks else caption_prompt(adapter)
    wording = usual if prompt is None else prompt
    if prompt is not None and not asks and adapter.tokenizer is not None:
        adapter.check_prompt([prompt])
    decode = measured_decoding(adapter, task, datasets, wording)
    own = {name: value for name, value in given.items() if value is not None}
    # A bound that is given moves the usual one at the other end.
    if "max_new_tokens" in own and "min_new_tokens" not in own:
        own["min_new_tokens"] = min(decode.min_new_tokens, own["max_new_tokens"])
    if "min_new_tokens" in own and "max_new_tokens" not in own:
        own["max_new_tokens"] = max(decode.max_new_tokens, own["min_new_tokens"])
    return wording, replace(decode, **own)


def _generates(adapter: Adapter, task: TaskName) -> bool:
    """Whether texts are written, or read after a prompt, when a model is measured."""
    return task in ("captioning", "answering") or (task == "pretraining" and "likelihood" in adapter.can)


def decoding_line(adapter: Adapter, config: RunConfig) -> str:
    """How texts are generated, and how long texts and how many candidates retrieval reads; "" where neither is."""
    decode, parts = config.decode, []
    if _generates(adapter, config.task):
        noun = "answers" if config.task == "answering" else "captions"
        how = "greedy decoding" if decode.num_beams == 1 else f"beam search with {decode.num_beams} beams"
        parts.append(f"{noun} of {decode.min_new_tokens} to {decode.max_new_tokens} tokens by {how}")
        for name, value in (("repetition", decode.repetition_penalty), ("length", decode.length_penalty)):
            parts += [f"{name} penalty {value:g}"] if value != 1 else []
        parts += [f"prompt {json.dumps(config.prompt, ensure_ascii=False)}"] if config.prompt else []
    if retrieves(adapter, config.task):
        words = f"{config.max_words} words and " if config.max_words else ""
        parts.append(f"texts of up to {words}{config.max_length} tokens")
        parts += [f"ITM reads up to {config.rerank_k} candidates"] if config.rerank_k else []
    return ", ".join(parts)


def _report_measures(
    model: str,
    data: tuple[str, ...],
    task: TaskName,
    result: Result | None,
    metrics: dict[str, float],
    records: list[dict[str, object]],
    measured: Measured,
    out: Path | None,
) -> None:
    """Write and print the figures; exit with 1 when the measure had to leave something out."""
    from openblip.metrics.results import write_result

    if unanswered := int(metrics.get("num_unanswered", 0)):
        noun, lack = ASKED.get(task, ("question", "answers"))
        without = f"{counted(unanswered, noun)} without {lack} in the data"
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
        print(json.dumps({**rounded(metrics), **left_out}, ensure_ascii=False))
    if measured.left_out:
        _tell_incomplete(task, measured, file)
        raise SystemExit(1)


def _tell_incomplete(task: TaskName, measured: Measured, file: Path | None) -> None:
    """Say on standard error what a measure was made without."""
    from openblip.data.sample import BrokenSample

    found = measured.left_out
    for one in found[:_MOST_TOLD]:
        tell(BrokenSample(one["cause"], one["key"], one["detail"]))
    causes = ", ".join(f"{count} {cause}" for cause, count in measured.counts.most_common())
    where = "; these are not the figures of the whole split"
    where += f", and {file} lists all" if file is not None else ""
    without = f"without {len(found)} that cannot be used ({causes})"
    used = counted(measured.num_images, "image")
    if task in ASKED:
        used += f" with {counted(measured.num_texts, ASKED[task][0])}"
    print(f"openblip: measured on {used}, {without}{where}", file=sys.stderr)
