"""The demo's report: what was learned against chance, the curves, images with verdicts, what goes wrong."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from openblip.core.files import read_jsonl
from openblip.core.text import read_json
from openblip.data.sources.open import open_source
from openblip.data.world.dataset import scene_from_meta
from openblip.data.world.scene import Scene
from openblip.data.world.truth import Verdict, judge
from openblip.experiments.demo.blip import CURVE_IMAGES, MOST_PROBABLE
from openblip.experiments.demo.blip2_page import blip2_section
from openblip.experiments.demo.capfilt_page import capfilt_section
from openblip.experiments.demo.config import DemoPlan, left_by
from openblip.experiments.demo.plan import plan_rows
from openblip.experiments.judges.blip import GREEDY
from openblip.experiments.labels import label
from openblip.generation.config import DecodeConfig
from openblip.report import (
    Card,
    CardText,
    Cell,
    Chart,
    Charts,
    Column,
    Details,
    Fact,
    Gallery,
    Headline,
    Report,
    Result,
    Section,
    Series,
    Stage,
    Stages,
    Strip,
    Strips,
    Table,
    page_image,
    write_report,
)
from openblip.report.content import Block
from openblip.tasks.load import load
from openblip.tasks.predictor import Predictor

__all__ = ["write_demo_report"]

NAMES = {"test": "unseen images", "novel": "combinations never seen"}
FEW_STEPS = 150
"""of pre-training, below which the report calls the run a short one"""
EXPLAINED = {
    "truth": "share of the captions written for unseen images that are true of them, decided by a parser; chance "
    "is the share that is true of another image",
    "itm": "own text against the text of another image, half and half",
    "t2i": "a text finds its own image among all, by ITC and then ITM; a short text may be true of several",
}


_WORDLESS = 0.5
"""facts a caption, below which beam search writes next to nothing"""


def write_demo_report(out: Path, plan: DemoPlan) -> Path:
    """Write `out`/report.html and report.json from what the stages left; returns the page's path."""
    measured = left_by(out, "measure")
    examples = list(_examples(out, "test", 60)), list(_examples(out, "novel", 24))
    captioner = load(out / "captioner" / "model", device="cpu", dtype="float32")
    matcher = load(out / "matcher" / "model", device="cpu", dtype="float32")
    # A captioner that has hardly begun to learn finds the empty caption the most probable as a whole.
    decode, intro = MOST_PROBABLE, "New images, captions by beam search."
    if measured["test"]["captioner_beam"]["mean_facts"] < _WORDLESS:
        decode, intro = (
            GREEDY,
            "New images, captions by greedy decoding: beam search still prefers no words.",
        )
    known, novel = (_cards(captioner, matcher, rows, decode) for rows in examples)
    report = Report(
        title="BLIP learns to see and to write",
        subtitle="a small model, from scratch, in a scene world where the truth of every caption is known",
        summary=_summary(out, measured, plan),
        headlines=_headlines(measured),
        sections=[
            Section(title="What it writes", intro=intro, blocks=[
                Gallery(cards=known[:18], title="Images like those it learned from"),
                Gallery(cards=novel[:9], title="With a combination of shape and colour it never saw"),
            ]),
            Section(title="What it finds", intro="A text searches 60 images: ITC first, then ITM.", blocks=[
                Strips(strips=_strips(matcher, examples[0]))
            ]),
            capfilt_section(out),
            blip2_section(out),
            Section(title="What it gets wrong", tone="wrong", blocks=[
                Gallery(cards=[card for card in known + novel if card.texts[0].verdict != "true"][:12]),
                _failures(measured),
            ]),
            Section(title="How it learned", blocks=[_curves(out, measured), _table(measured)]),
            Section(title="The plan", blocks=[*_times(out, plan), _details(out)]),
        ],
    )  # fmt: skip
    target = out / "report.html"
    write_report(target, report)
    return target


def _summary(out: Path, measured: dict[str, Any], plan: DemoPlan) -> list[str]:
    test, novel = measured["test"], measured["novel"]
    greedy, beam = test["captioner"], test["captioner_beam"]
    errs = " and errs more" if greedy["truth"] < beam["truth"] else ""
    steps = {name: left_by(out, name)["steps"] for name in ("pretrain", "captioner", "matcher")}
    short = (
        f"**A short run**: BLIP saw {plan.batch_size * steps['pretrain']:,} images in pre-training, too few to "
        "learn much, least of all BLIP-2. With more time (`openblip demo --minutes N`, usually 15) it learns more."
    )
    return [
        *((short,) if steps["pretrain"] < FEW_STEPS else ()),
        f'BLIP, size "{plan.model}", saw {plan.web_images:,} images with one noisy web text each and '
        f"{plan.human_images + plan.simple_images:,} with true captions ({plan.simple_images:,} of them "
        f"show a single object), trained with ITC, ITM and LM for {steps['pretrain']:,} steps "
        f"of {plan.batch_size} images; from there, on the true captions alone, a captioner trained for "
        f"{steps['captioner']:,} steps (LM) and a matcher for {steps['matcher']:,} (ITC and ITM).",
        f"Of its captions for {test['images']} unseen images {beam['truth']:.0%} are true in every fact, and "
        f"they name {beam['coverage']:.0%} of the objects; with combinations of shape and colour it never saw, "
        f"{novel['captioner_beam']['truth']:.0%} are true. Greedy decoding says more "
        f"({greedy['mean_facts']:.1f} facts a caption, beam search {beam['mean_facts']:.1f}){errs}: "
        f"{greedy['truth']:.0%} are true.",
    ]


def _headlines(measured: dict[str, Any]) -> list[Headline]:
    test = measured["test"]
    images, found = test["images"], test["matcher"]
    truth = test["captioner_beam"]
    return [
        Headline(label="captions that are true", value=truth["truth"], reference=truth["chance"],
                 explanation=EXPLAINED["truth"]),
        Headline(label="facts that are true", value=truth["fact_accuracy"],
                 explanation=f"a caption states {truth['mean_facts']:.1f} facts on average"),
        Headline(label="ITM accuracy", value=found["itm_accuracy"], reference=0.5,
                 explanation=EXPLAINED["itm"]),
        Headline(label=f"text finds its image among {images}", value=found["t2i_recall_itm@1"],
                 reference=1 / images, explanation=EXPLAINED["t2i"]),
    ]  # fmt: skip


def _examples(out: Path, split: str, count: int) -> Iterator[tuple[bytes, tuple[str, ...], Scene]]:
    """Images as PNG bytes with their own texts and scenes."""
    source = open_source(f"{out / 'world' / split}?text_column=captions&meta_columns=scene")
    for index in range(min(count, len(source))):
        sample = source[index]
        assert isinstance(sample.image, bytes)
        yield sample.image, sample.texts, scene_from_meta(sample.meta)


def _cards(
    captioner: Predictor, matcher: Predictor, rows: list[tuple[bytes, tuple[str, ...], Scene]], decode: DecodeConfig
) -> list[Card]:
    images = [image for image, _, _ in rows]
    cards = []
    for (image, texts, scene), captions in zip(rows, captioner.caption(images, decode), strict=True):
        text = captions[0].text
        verdict = judge(text, scene)
        # No words match nothing.
        score = matcher.match(image, text)[0][0].itm_probability if text.strip() else None
        written = CardText(text=text, verdict=_word(verdict), reason=verdict.reason, score=score, score_name="ITM")
        cards.append(Card(image=page_image(image, alt=texts[0]), texts=[written], truth=list(texts[:2])))
    return cards


def _word(verdict: Verdict) -> Any:
    if verdict.true:
        return "true"
    if not verdict.parsed:
        return "unparsed"
    return "partly" if verdict.num_true > 0 else "false"


def _strips(matcher: Predictor, rows: list[tuple[bytes, tuple[str, ...], Scene]]) -> list[Strip]:
    images = [image for image, _, _ in rows]
    strips = []
    # Longer texts say more, so that one image is meant.
    chosen = sorted(range(len(rows)), key=lambda i: -len(max(rows[i][1], key=len)))[:6]
    for wanted in chosen:
        query = max(rows[wanted][1], key=len)
        found = matcher.retrieve_images(images, [query], top=len(images), rerank_k=32)[0]
        order = [int(hit.item.removeprefix("#")) for hit in found]
        results = [
            Result(image=page_image(images[place]), score=hit.itm_probability, right=place == wanted)
            for place, hit in zip(order[:5], found, strict=False)
        ]
        strips.append(Strip(results=results, query=query, right_rank=order.index(wanted) + 1))
    return strips


def _failures(measured: dict[str, Any]) -> Table:
    failures = {split: measured[split]["captioner_beam"]["failures"] for split in NAMES}
    kinds = sorted({kind for found in failures.values() for kind in found})
    return Table(
        title="Captions with a false fact, by kind",
        columns=[Column(name="kind"), *(Column(name=name, unit="fraction") for name in NAMES.values())],
        rows=[[kind, *(found.get(kind, 0.0) for found in failures.values())] for kind in kinds],
    )


def _curves(out: Path, measured: dict[str, Any]) -> Charts:
    runs = {name: read_jsonl(out / name / "metrics.jsonl") for name in ("pretrain", "captioner", "matcher")}
    steps = max((record["step"] for record in runs["pretrain"]), default=0)
    labels = {"pretrain": "pre-training", "captioner": "captioner", "matcher": "matcher"}

    def line(run: str, split: str, name: str, label: str) -> Series:
        rows = [record for record in runs[run] if record["split"] == split and name in record]
        offset = 0 if run == "pretrain" else steps  # both continue from where pre-training ended
        x, y = [float(record["step"] + offset) for record in rows], [record[name] for record in rows]
        return Series(name=label, x=x, y=y)

    def lines(split: str, name: str, *of: str) -> list[Series]:
        return [line(run, split, name, labels[run]) for run in of]

    images = min(CURVE_IMAGES, measured["test"]["images"])  # val has as many as test
    truth = Chart(
        title="captions that are true (greedy)", x_label="step", unit="fraction",
        reference=measured["test"]["captioner"]["chance"],
        series=lines("eval", "caption_truth", "pretrain", "captioner"),
    )  # fmt: skip
    finds = Chart(
        title=f"text finds image, recall@1 among {images}", x_label="step", unit="fraction",
        reference=1 / images,
        series=[line(run, "eval", name, f"{stage}, {by}")
                for run, stage in (("pretrain", "pre-trained"), ("matcher", "matcher"))
                for name, by in (("t2i_recall@1", "ITC"), ("t2i_recall_itm@1", "ITM"))],
    )  # fmt: skip
    itm = Chart(
        title="ITM accuracy", x_label="step", unit="fraction", reference=0.5,
        series=lines("eval", "itm_accuracy", "pretrain", "matcher"),
    )  # fmt: skip
    losses = [
        Chart(title=f"loss, {name.removeprefix('loss_').upper()}", x_label="step", series=lines("train", name, *of))
        for name, of in (
            ("loss_itc", ("pretrain", "matcher")),
            ("loss_itm", ("pretrain", "matcher")),
            ("loss_lm", ("pretrain", "captioner")),
        )
    ]
    return Charts(charts=[truth, finds, itm, *losses])


def _table(measured: dict[str, Any]) -> Table:
    rows: list[list[Cell | float | str | None]] = []
    for name, run, of in (
        ("truth", "pretrain", "after pre-training, greedy"),
        ("truth", "captioner", "captioner, greedy"),
        ("truth", "captioner_beam", "captioner, beam search"),
        ("fact_accuracy", "captioner", "captioner, greedy"),
        ("fact_accuracy", "captioner_beam", "captioner, beam search"),
        ("coverage", "captioner", "captioner, greedy"),
        ("coverage", "captioner_beam", "captioner, beam search"),
        ("itm_accuracy", "pretrain", "after pre-training"),
        ("itm_accuracy", "matcher", "matcher"),
        ("t2i_recall@1", "pretrain", "recall@1 after pre-training"),
        ("t2i_recall@1", "matcher", "recall@1 of the matcher"),
        ("t2i_recall_itm@1", "matcher", "recall@1 of the matcher"),
        ("t2i_recall_itm@10", "matcher", "recall@10 of the matcher"),
        ("i2t_recall_itm@1", "matcher", "recall@1 of the matcher"),
    ):
        rows.append([f"{label(name)}, {of}", *(measured[split][run][name] for split in NAMES)])
    ceiling = [measured[split]["retrieval_ceiling@1"] for split in NAMES]
    rows.append(["most that knowing the truth gives at recall@1", *ceiling])
    columns = [
        Column(name="measure"),
        *(Column(name=name, unit="fraction") for name in NAMES.values()),
    ]
    return Table(title=f"On {measured['test']['images']} images of each kind", columns=columns, rows=rows)


def _times(out: Path, plan: DemoPlan) -> list[Block]:
    """Each stage's time and steps, planned and reached."""
    rows = [row for row in plan_rows(out, plan) if row.stage != "report"]
    seconds = [row.seconds or 0.0 for row in rows]
    table = Table(
        title="By stage",
        columns=[Column(name="stage"), Column(name="on"), Column(name="steps planned", unit="count"),
                 Column(name="steps reached", unit="count"), Column(name="seconds planned", unit="count"),
                 Column(name="seconds taken", unit="count")],
        rows=[[r.stage, r.does, r.planned_steps, r.steps, r.planned_seconds, r.seconds] for r in rows],
        note=_note(out, sum(seconds)),
    )  # fmt: skip
    return [
        Stages(stages=[Stage(name=row.stage, seconds=took) for row, took in zip(rows, seconds, strict=True)]),
        table,
    ]


def _note(out: Path, seconds: float) -> str:
    kept = read_json(out / "plan.json")
    if "minutes" not in kept:
        return ""
    timed = kept["calibration"]
    step = ", ".join(f"{1000 * value:.0f} ms ({size})" for size, value in timed["step"].items())
    return (
        f"Planned for {kept['minutes']:g} minutes from a calibration on this machine: a step of pre-training takes "
        f"{step}, drawing an image {1000 * timed['draw']:.1f} ms. The stages took {seconds / 60:.1f} minutes "
        "before this report. Training ends on its share of the time, so the steps reached are those that fit."
    )


def _details(out: Path) -> Details:
    made = read_json(out / "plan.json")
    facts = [
        Fact(name=name, value=str(value))
        for part in ("plan", "machine", "versions")
        for name, value in made[part].items()
    ]
    return Details(
        title="Settings, machine and versions", facts=[*facts, Fact(name="threads", value=torch.get_num_threads())]
    )


def unpack_images(folder: Path, tars: Path, count: int) -> None:
    """Lay the first images of the world's tars out as files, for trying the commands on."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(tars.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if count == 0:
                    return
                if member.name.endswith(".png") and (data := tar.extractfile(member)) is not None:
                    (folder / Path(member.name).name).write_bytes(data.read())
                    count -= 1
