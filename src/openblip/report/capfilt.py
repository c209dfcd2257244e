"""The page about a CapFilt run: what stayed and what went and why, with images to judge it by.

write_report("clean/capfilt/report.html", capfilt_report("clean"))
"""

from __future__ import annotations

from pathlib import Path

from openblip.bootstrap.browse import source_image
from openblip.bootstrap.policy import REASONS
from openblip.bootstrap.run import load_run
from openblip.bootstrap.summary import BINS, Summary, summarise
from openblip.bootstrap.table import Row, Text
from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.data.source_config import SourceConfig
from openblip.report.content import (
    Block,
    Card,
    CardText,
    Charts,
    Column,
    Details,
    Fact,
    Gallery,
    Headline,
    Histogram,
    Report,
    Section,
    Stage,
    Stages,
    Table,
    Verdict,
)
from openblip.report.content import Text as Paragraphs
from openblip.report.page_images import PageImage, page_image

__all__ = ["capfilt_report", "sample_card"]

_NAMES = {"web": "from the web", "synthetic": "written"}
_SHEETS = {
    "rescued": ("Kept only by a written caption", "The web's text goes, a written one stays."),
    "disagreement": ("Kept only by a text from the web", "The web's text stays, what was written goes."),
    "borderline": (
        "Borderline",
        "A text within 0.1 of the threshold: a little more or less would decide otherwise.",
    ),
    "kept": ("Kept", "Texts that stay."),
    "dropped": ("Dropped", "Images of which nothing stays."),
}
_POLICIES = {
    "paper": "every text at or above the threshold stays",
    "best": "the best text at or above the threshold stays",
    "web-first": "the web's texts at or above the threshold stay, else the best written one",
    "all": "every text of a wanted origin stays",
    "blip2": "the texts most similar to the image stay, whatever their probability",
}

_BY_THRESHOLD = ("paper", "best", "web-first")


def capfilt_report(run: Path | str, *, examples: int = 12) -> Report:
    """Make the report of a complete run.

    Args:
        examples: images of each kind on the contact sheets.

    Raises:
        UserError: there is no run in the folder, or it is not complete.
    """
    summary = summarise(run, examples=examples)
    config, _ = load_run(run)
    sheets: list[Block] = [
        Gallery(
            cards=[sample_card(row, summary, config.source) for row in summary.examples[kind]],
            title=title,
            note=note,
        )
        for kind, (title, note) in _SHEETS.items()
        if summary.examples[kind]
    ]
    done = ["captions written"] * bool(config.captioner) + ["texts filtered"] * bool(config.filter)
    judged = bool(config.filter)
    sections = [
        Section(
            title="Scores by the filter" if judged else "The decisions",
            blocks=[_charts(summary), _reasons(summary), _agreement(summary)],
        ),
        Section(
            title="Examples",
            intro="Samples drawn evenly from each kind"
            + ("; the score is the ITM probability." if judged else "."),
            blocks=sheets,
        ),
        Section(title="The texts", blocks=[_diversity(summary)]),
        Section(title="What could not be used", tone="wrong", blocks=_quarantine(summary)),
        Section(title="How it was made", blocks=[_stages(summary), _details(summary)]),
    ]
    return Report(
        title="CapFilt",
        subtitle=f"{config.source.path}: {summary.samples:,} samples, {' and '.join(done)}",
        summary=_sentences(summary),
        headlines=_headlines(summary),
        sections=sections,
    )


def _sentences(summary: Summary) -> list[str]:
    web, written = sum(summary.texts["web"].values()), sum(summary.texts["synthetic"].values())
    used = summary.good - summary.agreement["none"]
    policy = summary.output["policy"]
    found = [
        f"Of {summary.good:,} usable images **{used:,}** have a text that stays: {summary.kept['web']:,} of "
        f"{web:,} texts from the web and {summary.kept['synthetic']:,} of {written:,} that were written.",
        f"Policy `{policy['name']}`: {_POLICIES[policy['name']]}"
        + (f" ({summary.threshold:g})." if policy["name"] in _BY_THRESHOLD else "."),
    ]
    if summary.agreement["synthetic"] and policy["name"] != "all":
        found.append(
            f"**{summary.agreement['synthetic']:,}** images are kept only by a written caption: none of their "
            "texts from the web stays."
        )
    return found


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _headlines(summary: Summary) -> list[Headline]:
    totals = {origin: sum(summary.texts[origin].values()) for origin in _NAMES}
    heads = [
        Headline(label=f"texts {name} that stay", value=_share(summary.kept[origin], totals[origin]))
        for origin, name in _NAMES.items()
        if totals[origin]
    ]
    used = summary.good - summary.agreement["none"]
    heads.append(Headline(label="images with a text", value=_share(used, summary.good)))
    lost = sum(summary.causes.values())
    heads.append(
        Headline(label="samples that could not be used", value=_share(lost, summary.samples), better="lower")
    )
    return heads


def _charts(summary: Summary) -> Charts:
    edges = [number / BINS for number in range(BINS + 1)]
    scores = Histogram(
        title="ITM probability",
        edges=edges,
        groups={_NAMES[origin]: list(counts) for origin, counts in sorted(summary.itm.items(), reverse=True)},
        x_label="probability that text and image match",
        threshold=summary.threshold if summary.output["policy"]["name"] in _BY_THRESHOLD else None,
    )
    lengths = {name: group.lengths for name, group in summary.groups.items() if name in _NAMES}
    longest = max((n for counts in lengths.values() for n, count in enumerate(counts) if count), default=1)
    words = Histogram(
        title="Words in a text",
        edges=[number - 0.5 for number in range(longest + 2)],
        groups={_NAMES[name]: counts[: longest + 1] for name, counts in sorted(lengths.items(), reverse=True)},
        x_label="words",
    )
    return Charts(charts=[scores, words] if summary.itm else [words])


def _reasons(summary: Summary) -> Table:
    found = [reason for reason in REASONS if any(counts[reason] for counts in summary.texts.values())]
    return Table(
        title="Why texts stay or go",
        columns=[Column(name="reason"), *(Column(name=name, unit="count") for name in _NAMES.values())],
        rows=[
            [f"{reason}: {REASONS[reason]}", *(float(summary.texts[origin][reason]) for origin in _NAMES)]
            for reason in found
        ],
    )


def _agreement(summary: Summary) -> Table:
    names = {
        "both": "texts of both stay",
        "web": "only the web's stays",
        "synthetic": "only a written one stays",
        "none": "nothing stays",
    }
    return Table(
        title="Images by whose texts stay",
        columns=[
            Column(name="images where"),
            Column(name="number", unit="count"),
            Column(name="share", unit="fraction"),
        ],
        rows=[
            [name, float(summary.agreement[kind]), _share(summary.agreement[kind], summary.good)]
            for kind, name in names.items()
        ],
    )


def _diversity(summary: Summary) -> Table:
    order = ("web", "web kept", "synthetic", "synthetic kept")
    rows: list[list[float | str | None]] = []
    for name in order:
        if (group := summary.groups.get(name)) is None:
            continue
        origin, _, kept = name.partition(" ")
        label = _NAMES[origin] + (", those that stay" if kept else ", all")
        mean = group.words / group.texts if group.texts else None
        rows.append([label, float(group.texts), mean, group.distinct.share, float(len(group.vocabulary))])
    return Table(
        title="Length and diversity",
        columns=[
            Column(name="texts"),
            Column(name="number", unit="count"),
            Column(name="words on average"),
            Column(name="different texts", unit="fraction"),
            Column(name="different words", unit="count"),
        ],
        rows=rows,
        note=f"{1 - summary.images.share:.1%} of the images repeat another, to the pixel.",
    )


def _quarantine(summary: Summary) -> list[Block]:
    blocks: list[Block] = []
    if summary.causes:
        blocks.append(
            Table(
                title="Samples by cause",
                columns=[Column(name="cause"), Column(name="samples", unit="count")],
                rows=[[cause, float(count)] for cause, count in summary.causes.most_common()],
                note="Each is a row of the table, with its key and one sentence.",
            )
        )
        lines = [f"{row.status}: {row.key}: {row.detail}" for row in summary.examples["quarantined"]]
        blocks.append(Details(title="Some of them", lines=lines))
    else:
        blocks.append(Paragraphs(paragraphs=["Every sample could be used."]))
    if missing := summary.run["missing_files"]:
        blocks.append(Details(title=f"{len(missing)} files are missing from the numbered ones", lines=missing))
    return blocks


def _stages(summary: Summary) -> Stages:
    return Stages(stages=[Stage(name=name, seconds=spent) for name, spent in summary.seconds.items()])


def _details(summary: Summary) -> Details:
    run = summary.run
    total = sum(summary.seconds.values())
    facts = [
        Fact(name="samples a second of a process", value=summary.samples / total if total else None),
        Fact(name="captioner, fingerprint", value=run["captioner"] or "none"),
        Fact(name="filter, fingerprint", value=run["filter"] or "none"),
        Fact(name="one vision tower for both", value=str(run["one_vision"])),
        *(Fact(name=name, value=str(value)) for name, value in run["config"].items()),
        *(Fact(name=f"policy.{name}", value=str(value)) for name, value in summary.output["policy"].items()),
        *(Fact(name=name, value=str(value)) for name, value in run["versions"].items()),
    ]
    return Details(title="Settings and versions", facts=facts)


def sample_card(row: Row, summary: Summary, source: SourceConfig) -> Card:
    """A sample's image, if `source` still has it, with its texts, scores and verdicts."""
    return Card(
        image=_image(row, source),
        texts=[_card_text(text, summary) for text in row.texts],
        title=row.key,
    )


def _card_text(text: Text, summary: Summary) -> CardText:
    verdict: Verdict = "kept" if text.kept else "dropped"
    near = text.itm is not None and abs(text.itm - summary.threshold) < 0.1
    if near and text.reason in ("matched", "unmatched"):
        verdict = "borderline"
    return CardText(
        text=text.text,
        label=_NAMES[text.origin],
        verdict=verdict,
        reason=f"{'stays' if text.kept else 'goes'}: {text.reason}",
        score=text.itm,
        score_name="ITM",
    )


def _image(row: Row, source: SourceConfig) -> PageImage | None:
    """The image, where the source is still there."""
    try:
        return page_image(source_image(row, source), alt=row.key, max_side=256)
    except (BrokenSample, UserError):
        return None
