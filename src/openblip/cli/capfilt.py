"""Commands that bootstrap a collection: `capfilt` and `capfilt decide`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from tyro.conf import Positional, arg

from openblip.cli.arguments import Card, Device, Dtype, OptionalPath, Tokenizer, person
from openblip.cli.usage import check_dry_run, show_usage
from openblip.core.errors import UserError
from openblip.core.text import counted

if TYPE_CHECKING:
    from openblip.bootstrap.job import CapFiltConfig, Done, Output, Shard
    from openblip.bootstrap.run import Totals

__all__ = ["capfilt", "capfilt_decide"]

Layout = Annotated[
    Literal["tars", "parquet", "jsonl", "folder", "none"],
    arg(help="of the training set: tars, parquet, jsonl or folder; none writes the table alone"),
]
_Name = Literal["paper", "best", "web-first", "blip2", "all"]
PolicyName = Annotated[
    _Name | None,
    arg(
        metavar="{" + ",".join(get_args(_Name)) + "}",
        help="which texts of an image stay: paper keeps all that match, best the one that matches best, web-first "
        "the web's that match, else the best generated one, blip2 the most similar to the image (--keep), all "
        "every text; left out, paper, and all without a filter",
        help_behavior_hint="",
    ),
]
Threshold = Annotated[
    float | None,
    arg(
        metavar="P",
        help="least ITM probability of a text that stays (not with blip2 and all); left out, 0.5",
        help_behavior_hint="",
    ),
]
Keep = Annotated[
    int | None,
    arg(metavar="NUMBER", help="texts that blip2 keeps for each image; left out, 2", help_behavior_hint=""),
]
Origins = Annotated[
    Literal["both", "web", "synthetic"],
    arg(help="whose texts are wanted at all: the web's, the captioner's or both"),
]
RankBy = Annotated[Literal["itc", "ranker"], arg(help="similarity that blip2 ranks by")]


def capfilt(
    source: Annotated[Positional[str], arg(metavar="SOURCE", help_behavior_hint="")],
    target: Annotated[Positional[Path], arg(metavar="TARGET", help_behavior_hint="")],
    /,
    *,
    filter: Annotated[str, arg(metavar="MODEL", help_behavior_hint="")] = "",
    captioner: Annotated[str, arg(metavar="MODEL", help_behavior_hint="")] = "",
    tokenizer: Tokenizer = None,
    num_captions: int = 1,
    nucleus: float = 0.9,
    beams: Annotated[int, arg(help_behavior_hint="")] = 0,
    min_new_tokens: int = 5,
    max_new_tokens: int = 20,
    prompt: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    seed: int = 0,
    policy: PolicyName = None,
    threshold: Threshold = None,
    keep: Keep = None,
    origins: Origins = "both",
    rank_by: RankBy = "itc",
    ranker: Annotated[str, arg(metavar="MODEL", help_behavior_hint="")] = "",
    layout: Layout = "tars",
    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None,
    max_length: int = 40,
    batch_size: int = 32,
    chunk_size: int = 1024,
    engine: Literal["local", "ray"] = "local",
    workers: int = 0,
    threads: int = 0,
    address: Annotated[str, arg(help_behavior_hint="")] = "",
    shard: Annotated[str, arg(metavar="I/N", help_behavior_hint="")] = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    dry_run: bool = False,
    gpu: Card = None,
    gpus: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    mfu: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="")] = None,
) -> None:
    """Clean a noisy collection: write captions, score all texts, keep what matches (CapFilt).

    Without a filter captions are written, and every text stays.

    Args:
        source: tars, parquet, a captions file or a folder with .txt beside the images, as for train.
        target: a new folder for the training set and the result table; the same command resumes in it.
        filter: the model that judges, BLIP fine-tuned with ITC and ITM or BLIP-2 of stage 1; left out, every text
            stays.
        captioner: the model that writes, BLIP fine-tuned with LM or BLIP-2; left out, the web's texts are judged
            alone.
        num_captions: texts written for each image.
        nucleus: sample among the likeliest tokens that together reach this probability.
        beams: write by beam search instead.
        min_new_tokens: shortest text.
        max_new_tokens: longest text.
        prompt: how texts begin; left out, what the captioner was trained with.
        seed: of sampling; an image's texts depend on it and the sample's key alone.
        ranker: a CLIP-like model (hub name or folder) whose similarity is noted as well.
        image_size: side in pixels of the images that the models read; left out, what each was trained with.
        max_length: tokens of a text that the filter reads.
        batch_size: images at a time.
        chunk_size: samples that are finished together, and written as one shard.
        engine: processes of this machine, or Ray.
        workers: processes; 0 is one for each GPU, or one.
        threads: of each process; 0 shares the cores out evenly.
        address: of a Ray cluster; left out, one is started here.
        shard: take share I of N (0/8 ... 7/8) of the chunks; afterwards, one call without it joins all.
        dry_run: print what the run takes, arithmetic, memory and hours on a card, and begin nothing: no weights are
            read into memory, no images, and TARGET is not made. The options below are for this alone.
        gpu: the card: a100-40, a100-80, h100, h200, a6000, l40s or rtx4090; left out, h100.
        gpus: how many, one process each; left out, one.
        mfu: share of the card's arithmetic that is assumed to last; left out, 0.4.
    """
    check_dry_run(dry_run, gpu=gpu, gpus=gpus, mfu=mfu)
    if not filter and not captioner:
        raise UserError("name a --filter, which judges texts, a --captioner, which writes them, or both")
    from openblip.bootstrap.job import CapFiltConfig, check_policy
    from openblip.bootstrap.run import Engine, run_capfilt
    from openblip.data.source_config import parse_spec
    from openblip.generation.config import DecodeConfig

    bounds: dict[str, Any] = {"min_new_tokens": min_new_tokens, "max_new_tokens": max_new_tokens, "seed": seed}
    if beams:
        decode = DecodeConfig(num_beams=max(beams, num_captions), num_sequences=num_captions, **bounds)
    else:
        decode = DecodeConfig(sample=True, top_p=nucleus, num_sequences=num_captions, **bounds)
    config = CapFiltConfig(
        source=parse_spec(source),
        captioner=captioner,
        filter=filter,
        decode=decode,
        prompt=prompt,
        image_size=image_size,
        tokenizer=tokenizer,
        max_length=max_length,
        ranker=ranker,
        batch_size=batch_size,
        chunk_size=chunk_size,
        device=device,
        dtype=dtype,
    )
    output = _output(policy, threshold, keep, origins, rank_by, layout, judged=bool(filter))
    check_policy(config, output)
    if dry_run:
        _predict(config, gpu=gpu, gpus=gpus, mfu=mfu)
        return
    totals = run_capfilt(
        config,
        target,
        output,
        engine=Engine(name=engine, workers=workers, threads=threads, address=address),
        shard=_shard(shard),
        on_chunk=_progress,
    )
    if totals.smallest_batch:
        print(
            f"openblip: the memory of the GPU did not suffice for {batch_size} images at a time; where it did not, "
            f"they were computed in parts, the smallest of {totals.smallest_batch}",
            file=sys.stderr,
        )
    _conclude(totals, target, judged=bool(filter), report=not shard)


def _predict(config: CapFiltConfig, **card: Any) -> None:
    """What `--dry-run` prints."""
    from openblip.checkpoints.outline import outline
    from openblip.core.compute import DTYPES
    from openblip.tasks.registry import adapt
    from openblip.tasks.usage_of import capfilt_work, count_data

    counts = count_data("pretraining", (config.source,), samples=sys.maxsize)
    judge = adapt(outline(config.filter, image_size=config.image_size)) if config.filter else None
    writer = judge if config.captioner == config.filter else None
    if config.captioner and writer is None:
        writer = adapt(outline(config.captioner, image_size=config.image_size))
    dtype = DTYPES["bfloat16" if config.dtype == "auto" else config.dtype]
    work = capfilt_work(
        writer, judge, config.decode, counts, dtype, batch=config.batch_size, max_length=config.max_length
    )
    show_usage(config.source.path, work, counts, **card)


def capfilt_decide(
    run: Annotated[Positional[Path], arg(metavar="RUN", help_behavior_hint="")],
    /,
    *,
    policy: PolicyName = None,
    threshold: Threshold = None,
    keep: Keep = None,
    origins: Origins = "both",
    rank_by: RankBy = "itc",
    layout: Layout = "tars",
    out: OptionalPath = None,
) -> None:
    """Decide anew on the scores of an earlier run, without a model, and write the training set again.

    Args:
        run: the folder that openblip capfilt wrote.
        out: a folder for the new decisions and set; left out, they replace those of the run.
    """
    from openblip.bootstrap.run import decide_again, load_run

    judged = bool(load_run(run)[0].filter)
    output = _output(policy, threshold, keep, origins, rank_by, layout, judged=judged)
    _conclude(decide_again(run, output, target=out, on_chunk=_progress), out or run, judged=judged)


def _output(
    policy: Any,
    threshold: float | None,
    keep: int | None,
    origins: str,
    rank_by: Any,
    layout: Any,
    *,
    judged: bool,
) -> Output:
    """Decisions as they were asked for.

    Raises:
        UserError: by scores, where nothing is judged.
    """
    from openblip.bootstrap.job import Output
    from openblip.bootstrap.policy import Policy

    if threshold is not None and not judged:
        raise UserError(
            "--threshold is for what a filter says, and there is none; name a --filter, or leave it out"
        )
    wanted = ("web", "synthetic") if origins == "both" else (origins,)
    given = {name: value for name, value in (("threshold", threshold), ("keep", keep)) if value is not None}
    name = policy or ("paper" if judged else "all")
    made = Policy(name=name, origins=wanted, rank_by=rank_by, **given)  # type: ignore[arg-type]
    return Output(policy=made, layout=layout)


def _shard(text: str) -> Shard | None:
    from openblip.bootstrap.job import Shard

    if not text:
        return None
    if (parts := re.fullmatch(r"(\d+)/(\d+)", text)) is None:
        raise UserError(f"--shard {text}: give I/N, for example 0/8 for the first of eight")
    return Shard(int(parts[1]), int(parts[2]))


def _progress(done: Done, totals: Totals) -> None:
    if person() and done.new:
        rate = f", {done.samples / done.seconds:.1f} a second" if done.seconds else ""
        print(f"  {done.chunk}: {counted(done.samples, 'sample')}{rate}; {totals.samples} in all", flush=True)


def _conclude(totals: Totals, target: Path, *, judged: bool, report: bool = True) -> None:
    from openblip.bootstrap.places import Places

    page = Places(target).report
    if report and not totals.kept_texts and totals.samples > totals.quarantined:
        anew = f"; openblip capfilt decide {target} --threshold NUMBER decides anew" if judged else ""
        print(
            f"openblip: no text is kept, so {target} holds no training set; its {page.name} says why{anew}",
            file=sys.stderr,
        )
    if report and (totals.new_chunks or not page.exists()):
        from openblip.report import write_report
        from openblip.report.capfilt import capfilt_report

        write_report(page, capfilt_report(target))
    if not person():
        from openblip.core.config import to_dict

        print(json.dumps({"target": str(target), **to_dict(totals)}))
        return
    print(
        f"{counted(totals.kept_texts, 'text')} of {counted(totals.images, 'image')} kept, "
        f"of {counted(totals.samples, 'sample')}"
        + (f" ({totals.quarantined} could not be used)" if totals.quarantined else "")
        + f"; the set is in {target}"
        + (f", what became of each text in {page}" if report else "")
    )
