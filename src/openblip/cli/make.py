"""Commands that make things around models: `tokenizer`, `world`, `demo` and `report`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from openblip.cli.arguments import Data, Folder, need
from openblip.core.errors import UserError
from openblip.core.text import counted

DemoStage = Literal[
    "world", "pretrain", "captioner", "matcher", "measure", "capfilt", "again", "language", "stage1", "stage2",
    "zero-shot", "report",
]  # fmt: skip
"""names of `experiments.demo.STAGES`, which are told without torch"""

__all__ = ["DemoStage", "demo", "report", "tokenizer", "world"]


def tokenizer(data: Data = (), /, *, out: Folder, vocab_size: int = 8000, keep_case: bool = False) -> None:
    """Learn a WordPiece vocabulary from captions, in any language.

    Args:
        data: image-text data, as for train; only the texts are read.
        out: where the tokenizer goes; give it to training with --tokenizer FOLDER.
        vocab_size: pieces at most.
        keep_case: tell upper from lower case.
    """
    from openblip.core.tokenizer import TextTokenizer
    from openblip.data.sources.open import open_source
    from openblip.tasks.vocabulary import training_texts

    need(data, "the data whose captions are learned from: a folder, a captions file, tars, hf:NAME or world:train")
    texts = training_texts([open_source(spec) for spec in data], clean="spaces", limit=10**9)
    learned = TextTokenizer.train(texts, vocab_size=vocab_size, lowercase=not keep_case)
    learned.save(out)
    print(f"{learned.vocab_size} tokens in {out}")


def world(
    out: Annotated[Positional[Path], arg(metavar="FOLDER", help_behavior_hint="")],
    /,
    *,
    split: Literal["train", "val", "test", "novel"] = "train",
    samples: int = 1000,
    size: int = 64,
    text: Literal["human", "web", "both"] = "human",
    layout: Literal["tars", "jsonl"] = "jsonl",
    seed: int = 0,
) -> None:
    """Write images of the synthetic scene world with captions whose truth is known.

    Args:
        out: where; it must not exist.
        split: novel shows combinations of shape and colour that train never does.
        samples: images.
        size: of an image, in pixels.
        text: true captions (human), noisy web texts, or both.
        layout: images and captions.jsonl, or tars as img2dataset writes them.
        seed: of all that is drawn.
    """
    from openblip.data.world.dataset import WorldConfig, write_world

    if out.exists():
        raise UserError(f"{out} exists already; choose a new folder")
    config = WorldConfig(split=split, num_samples=samples, size=size, text=text, seed=seed)
    write_world(out, config, layout=layout)
    print(f"{counted(samples, 'image')} in {out}")


def demo(
    *,
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/demo"),
    minutes: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 15)")] = None,
    quick: bool = False,
    stage: Annotated[UseAppendAction[tuple[DemoStage, ...]], arg(help_behavior_hint="(repeat it for more)")] = (),
    again: bool = False,
    seed: int = 0,
) -> None:
    """Watch BLIP learn from scratch: a synthetic world, pre-training, a captioner, a report to look at.

    Args:
        out: where the demo goes; finished stages are not run again.
        minutes: that the whole takes on this machine; sizes and steps are planned for it.
        quick: a look, in two minutes unless --minutes says otherwise, in runs/demo-quick unless --out does.
        stage: run this stage alone.
        again: run stages even if they are finished.
        seed: of the world and of training.
    """
    if minutes is None:
        minutes = 2.0 if quick else 15.0
    if not 1 <= minutes < float("inf"):
        raise UserError(f"the demo needs at least a minute, and a number of them, not {minutes:g}")
    began = time.perf_counter()
    from openblip.experiments.demo import run_demo

    if quick and out == Path("runs/demo"):
        out = Path("runs/demo-quick")
    run_demo(out, minutes, began=began, seed=seed, only=stage, again=again)


def report(
    runs: Annotated[tuple[Path, ...], arg(metavar="RUN ...", help_behavior_hint="")] = (),
    /,
    *,
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
) -> None:
    """Draw the curves and facts of training runs, what became of the texts of a CapFilt run, or the tables of a
    folder of results, as a page.

    Args:
        runs: folders of runs, several are drawn over one another; or a folder of openblip evaluate --out.
        out: the page; left out, report.html in the first run's folder.
    """
    from openblip.cli.evaluated import show_results
    from openblip.metrics.results import has_results
    from openblip.report import run_report, write_report

    need(runs, "the folder of a run, for example runs/first")
    if (runs[0] / "capfilt" / "run.json").is_file():
        from openblip.report.capfilt import capfilt_report

        target = out or runs[0] / "capfilt" / "report.html"
        write_report(target, capfilt_report(runs[0]))
    elif len(runs) == 1 and not (runs[0] / "metrics.jsonl").exists() and has_results(runs[0]):
        target = out or runs[0] / "report.html"
        show_results(runs[0], target)
    else:
        target = out or runs[0] / "report.html"
        write_report(target, run_report(*runs))
    print(f"The report is in {target}")
