"""The `openblip` command. Each command imports what it needs when it runs, so `--help` is quick.

A user's mistake is one sentence on standard error and exit code 2; Ctrl-C saves what is being trained,
says how to go on and exits with 130.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, UseAppendAction

from openblip.core.errors import UserError

if TYPE_CHECKING:
    from openblip.tasks.run import RunConfig

__all__ = ["app", "main"]

app = tyro.extras.SubcommandApp()

Specs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPEC [SPEC ...]")]
Sets = UseAppendAction[tuple[str, ...]]
Size = Literal["nano", "micro", "base", "large"]


def _resolve(config: RunConfig, file: Path | None, overrides: tuple[str, ...]) -> RunConfig:
    """The recipe, or the file instead of it, with single settings on top."""
    from openblip.core.config import load, override

    if file is not None:
        config = load(file, type(config))
    return override(config, overrides)


def _train(config: RunConfig, out: Path, *, resume: bool, title: str) -> None:
    from openblip.tasks.run import run_training

    result = run_training(config, out, resume=resume, title=title)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"The model is in {out / 'model'}; its curves: openblip report {out}")
        if result.best:
            print(f"The best one ({result.best['name']} {result.best['value']:.4g}) is in {out / 'best'}")


@app.command(name="pretrain")
def pretrain(
    data: Specs = (),
    /,
    *,
    out: Path,
    size: Size = "micro",
    steps: int = 1000,
    validation: tuple[str, ...] = (),
    config: Path | None = None,
    set: Sets[str] = (),  # type: ignore[type-arg]
    resume: bool = False,
) -> None:
    """Train a BLIP model from images with captions: ITC + ITM + LM.

    Args:
        data: folders, captions files, tars, hf:NAME or world:SPLIT, with settings as in "a.jsonl?text_column=alt".
        out: folder of the run; it must be new, or --resume.
        size: "base" and "large" are the paper's, "nano" and "micro" are for few pictures and no GPU.
        steps: of the small sizes; the paper's train for 20 epochs (--set train.epochs=...).
        validation: data to measure on while training.
        config: a TOML or JSON file with every setting, in place of the recipe for the size.
        set: one setting, for example --set train.learning_rate=1e-4 (repeat it for more).
        resume: go on from the newest checkpoint in --out.
    """
    from openblip.recipes import blip_pretrain, small_pretrain

    _need_data(data, config)
    specs = data or ("world:train",)
    if size in ("base", "large"):
        recipe = blip_pretrain(specs, size=size, validation=validation)
    else:
        recipe = small_pretrain(specs, size=size, validation=validation, steps=steps)
    _train(_resolve(recipe, config, set), out, resume=resume, title="pre-training")


@app.command(name="finetune")
def finetune(
    task: Positional[Literal["caption", "retrieval"]],
    data: Specs = (),
    /,
    *,
    model: str,
    out: Path,
    validation: tuple[str, ...] = (),
    config: Path | None = None,
    set: Sets[str] = (),  # type: ignore[type-arg]
    resume: bool = False,
) -> None:
    """Fine-tune a model to caption (LM) or for retrieval (ITC + ITM with image ids).

    Args:
        task: what for.
        data: image-text data, as for pretrain.
        model: a model folder or an original BLIP checkpoint.
        out: folder of the run; it must be new, or --resume.
        validation: data to measure on while training; the best model is kept in OUT/best.
        config: a TOML or JSON file with every setting, in place of the paper's recipe.
        set: one setting, for example --set train.epochs=3 (repeat it for more).
        resume: go on from the newest checkpoint in --out.
    """
    from openblip.recipes import caption_finetune, retrieval_finetune

    _need_data(data, config)
    recipe = caption_finetune if task == "caption" else retrieval_finetune
    made = recipe(data or ("world:train",), model=model, validation=validation)
    _train(_resolve(made, config, set), out, resume=resume, title=f"fine-tuning ({task})")


def _need_data(data: tuple[str, ...], config: Path | None) -> None:
    if not data and config is None:
        raise UserError(
            "name the data: a folder of pictures with .txt files, a captions file, tars, hf:NAME or world:train"
        )


@app.command(name="evaluate")
def evaluate(
    data: Specs,
    /,
    *,
    model: str,
    samples: int = 1000,
    rerank: int = 16,
    beams: int = 3,
    max_new_tokens: int = 20,
    out: Path | None = None,
    device: str = "auto",
) -> None:
    """Measure a model: caption metrics, retrieval recall with and without ITM, ITM accuracy.

    Args:
        data: image-text data, as for pretrain.
        samples: pictures to use, from the first.
        rerank: candidates that ITM reads for each query; 0 leaves re-ranking out.
        out: folder for metrics.json and predictions.jsonl.
    """
    from openblip.core.runtime import choose_device
    from openblip.generation.types import DecodeConfig
    from openblip.tasks.predictor import Predictor
    from openblip.tasks.run import RunConfig, as_sources, evaluate_model

    predictor = Predictor.load(model, device=str(choose_device(device)), dtype="float32")
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
    _table(f"{model} on {', '.join(data)}", numbers)
    if out is not None:
        from openblip.core.files import write_json, write_text

        write_json(out / "metrics.json", {"model": model, "data": list(data), "samples": samples, **numbers})
        write_text(out / "predictions.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def _table(title: str, numbers: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


@app.command(name="caption")
def caption(
    pictures: Specs,
    /,
    *,
    model: str,
    prompt: str | None = None,
    beams: int = 3,
    nucleus: float | None = None,
    num_captions: int = 1,
    min_new_tokens: int = 5,
    max_new_tokens: int = 20,
    seed: int = 0,
    batch_size: int = 16,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Write captions for pictures.

    Args:
        pictures: files, folders or globs.
        prompt: how captions begin; by default what the model was trained with.
        beams: of the beam search.
        nucleus: sample instead, among the most likely tokens that make up this probability (the paper takes 0.9).
        num_captions: for each picture.
    """
    from openblip.generation.types import DecodeConfig
    from openblip.tasks.predictor import Predictor

    bounds: dict[str, Any] = {"min_new_tokens": min_new_tokens, "max_new_tokens": max_new_tokens, "seed": seed}
    if nucleus is not None:
        config = DecodeConfig(sample=True, top_p=nucleus, num_sequences=num_captions, **bounds)
    else:
        config = DecodeConfig(num_beams=max(beams, num_captions), num_sequences=num_captions, **bounds)
    predictor = Predictor.load(model, device=device, dtype=dtype, batch_size=batch_size)

    def rows(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, written in zip(names, predictor.caption(names, config, prompt=prompt), strict=True):
            record = {
                "image": name,
                "captions": [{"text": c.text, "log_prob": round(c.log_prob, 4)} for c in written],
            }
            yield f"{name}: " + "\n    ".join(c.text for c in written), record

    _each_batch(pictures, batch_size, rows)


@app.command(name="match")
def match(
    pictures: Specs,
    /,
    *,
    model: str,
    text: UseAppendAction[tuple[str, ...]] = (),
    batch_size: int = 16,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Say how well texts fit pictures: ITM probability and ITC similarity.

    Args:
        pictures: files, folders or globs.
        text: a text to match with every picture (repeat it for more).
    """
    from openblip.tasks.predictor import Predictor

    if not text:
        raise UserError('name at least one text: --text "a red bus"')
    predictor = Predictor.load(model, device=device, dtype=dtype, batch_size=batch_size)

    def rows(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, found in zip(names, predictor.match(names, text), strict=True):
            lines = [f"{m.itm_probability:6.1%}  {m.itc_similarity:+.3f}  {m.text}" for m in found]
            scores = [
                {"text": m.text, "itm": round(m.itm_probability, 6), "itc": round(m.itc_similarity, 6)}
                for m in found
            ]
            yield f"{name}\n  " + "\n  ".join(lines), {"image": name, "matches": scores}

    _each_batch(pictures, batch_size, rows)


def _each_batch(places: tuple[str, ...], batch_size: int, rows: Any) -> None:
    """Go through the pictures, skipping and counting unreadable ones; lines on a terminal, JSONL on a pipe."""
    from openblip.data.images import decode_image
    from openblip.data.sample import BrokenSample
    from openblip.tasks.predictor import find_images

    names = find_images(places)
    person = sys.stdout.isatty()
    skipped = 0
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        try:
            results = list(rows(batch))
        except UserError:
            good = []
            for name in batch:
                try:
                    decode_image(Path(name))
                    good.append(name)
                except BrokenSample as broken:
                    skipped += 1
                    print(f"openblip: skipped {name} ({broken.cause}): {broken.detail}", file=sys.stderr)
            if len(good) == len(batch):
                raise  # it was not a picture's fault
            results = list(rows(good)) if good else []
        for line, record in results:
            print(line if person else json.dumps(record, ensure_ascii=False), flush=True)
    if skipped:
        print(f"openblip: {len(names) - skipped} pictures done, {skipped} skipped", file=sys.stderr)
        raise SystemExit(1)


@app.command(name="retrieve")
def retrieve(
    query: Positional[str],
    pictures: Specs,
    /,
    *,
    model: str,
    texts: Path | None = None,
    top: int = 5,
    rerank: int = 32,
    batch_size: int = 32,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Search pictures for a text, or the lines of a file for a picture.

    Args:
        query: a text; or a picture's path together with --texts.
        pictures: files, folders or globs to search (with --texts they are not read; write a dot).
        texts: a file with one text a line: the query is a picture, and these are searched.
        rerank: candidates that ITM reads; 0 orders by ITC alone.
    """
    from openblip.tasks.predictor import Predictor, find_images

    predictor = Predictor.load(model, device=device, dtype=dtype, batch_size=batch_size)
    if texts is not None:
        if not texts.is_file():
            raise UserError(f"there is no file {texts} with texts to search")
        lines = [line.strip() for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not lines:
            raise UserError(f"{texts} holds no text")
        found = predictor.retrieve_texts(query, lines, top=top, rerank_k=rerank)
    else:
        found = predictor.retrieve_images(find_images(pictures), [query], top=top, rerank_k=rerank)[0]
    for place, hit in enumerate(found, 1):
        record = {"rank": place, "item": hit.item, "itc": hit.itc_similarity, "itm": hit.itm_probability}
        if sys.stdout.isatty():
            itm = "" if hit.itm_probability is None else f"  ITM {hit.itm_probability:6.1%}"
            print(f"{place:3d}. {hit.item}   ITC {hit.itc_similarity:+.3f}{itm}")
        else:
            print(json.dumps(record, ensure_ascii=False))


@app.command(name="tokenizer")
def tokenizer(data: Specs, /, *, out: Path, vocab_size: int = 8000, lowercase: bool = True) -> None:
    """Learn a WordPiece vocabulary from captions, in any language.

    Args:
        data: image-text data, as for pretrain.
        out: folder for the tokenizer; give it to training with --set tokenizer=FOLDER.
    """
    from openblip.core.tokenizer import TextTokenizer
    from openblip.data.sources.open import open_source
    from openblip.tasks.run import training_texts

    sources = [open_source(spec) for spec in data]
    learned = TextTokenizer.train(
        training_texts(sources, clean="spaces", limit=10**9), vocab_size=vocab_size, lowercase=lowercase
    )
    learned.save(out)
    print(f"{learned.vocab_size} tokens in {out}")


@app.command(name="world")
def world(
    out: Path,
    /,
    *,
    split: Literal["train", "val", "test", "novel"] = "train",
    samples: int = 1000,
    size: int = 64,
    text: Literal["human", "web", "both"] = "human",
    layout: Literal["tars", "jsonl"] = "jsonl",
    seed: int = 0,
) -> None:
    """Write pictures of the synthetic scene world with captions whose truth is known.

    Args:
        out: folder; it must not exist.
        text: true captions, noisy web texts, or both.
        layout: images and captions.jsonl, or tars as img2dataset writes them.
    """
    from openblip.data.world.dataset import WorldConfig, write_world

    if out.exists():
        raise UserError(f"{out} exists already; choose a new folder")
    config = WorldConfig(split=split, num_samples=samples, size=size, text=text, seed=seed)
    write_world(out, config, layout=layout)
    print(f"{samples} pictures in {out}")


@app.command(name="demo")
def demo(
    *,
    out: Path = Path("runs/demo"),
    quick: bool = False,
    stage: tuple[str, ...] = (),
    again: bool = False,
    seed: int = 0,
) -> None:
    """Watch BLIP learn from scratch: a synthetic world, pre-training, a captioner, a report to look at.

    Args:
        out: folder of the demo; finished stages are not run again.
        quick: a look in two minutes.
        stage: run these stages alone.
        again: run stages even if they are finished.
    """
    from openblip.demo import run_demo

    run_demo(out, quick=quick, only=stage, again=again, seed=seed)


@app.command(name="report")
def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], /, *, out: Path | None = None) -> None:
    """Draw the curves and facts of one or several training runs as a page.

    Args:
        runs: folders of runs; several are drawn over one another.
        out: the page; by default report.html in the first run's folder.
    """
    from openblip.report import run_report, write_report

    target = out or runs[0] / "report.html"
    write_report(target, run_report(*runs))
    print(f"The report is in {target}")


@app.command(name="info")
def info(model: Positional[str], /) -> None:
    """Say what a model is: sizes, parameters, tokenizer, what it can do."""
    from openblip.checkpoints.store import open_model
    from openblip.core.config import to_dict

    stored = open_model(model)
    count = sum(parameter.numel() for parameter in stored.model.parameters())
    config = stored.model.config
    can = [name for name, has in (("match", config.encoder), ("caption", config.decoder)) if has]
    described = {
        "parameters": count,
        "can": can,
        "vocab_size": stored.tokenizer.vocab_size,
        "ignored_keys": stored.ignored,
        "model": to_dict(config),
        "info": stored.info,
    }
    print(json.dumps(described, indent=2))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _keep_memory()
    try:
        app.cli(prog="openblip", description=__doc__ and "BLIP and BLIP-2: train, use, measure.", args=arguments)
    except UserError as error:
        print(f"openblip: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("openblip: stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:
        return int(stop.code or 0) if not isinstance(stop.code, str) else 2
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"openblip: {error}", file=sys.stderr)
        return int(code)
    return 0


def _keep_memory() -> None:
    from openblip.core.memory import keep_freed_memory

    keep_freed_memory()


if __name__ == "__main__":
    raise SystemExit(main())
