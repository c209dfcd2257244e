"""A report of any training run from its folder, or of several runs laid over each other.

    write_report(Path("runs/a/report.html"), run_report(Path("runs/a")))
    write_report(Path("compare.html"), run_report(Path("runs/a"), Path("runs/b")))

It reads what the loop leaves behind (metrics.jsonl, config.json, versions.json, skipped.jsonl, log.txt) and needs
nothing but metrics.jsonl; the run may still be in progress, or may have been killed in the middle of a line. What
guessing gives comes from `chance`, or from a number recorded as "chance_NAME" beside NAME.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from openblip.core.config import differences
from openblip.core.errors import UserError
from openblip.core.files import read_jsonl
from openblip.core.text import read_json, read_lines
from openblip.report.content import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Details,
    Fact,
    Headline,
    Report,
    Section,
    Series,
    Table,
    Text,
)
from openblip.report.curves import NUM_COLORS, thin
from openblip.report.numbers import spell, spell_short

__all__ = ["run_report"]

_COLUMNS = frozenset({"step", "epoch", "time", "split"})
_RUNNING = ("learning_rate", "images_per_second", "grad_norm", "skipped")
"""what says how the run went, not what was learned"""
_SHARE = re.compile(r"recall|accura|truth|true|coverage|precision|parsed|share|probab|@\d|(^|_)[tia]?r\d+$")
_SPELLED = {
    **{name: name.upper() for name in ("itc", "itm", "itg", "lm", "vqa", "bleu")},
    "cider": "CIDEr",
    "grad": "gradient",
}
_LOWER = re.compile(r"loss|error|perplexity")
_MOST_POINTS = 600
_LOG_LINES = 200
_MOST_HEADLINES = 4


@dataclass
class _Run:
    """What a run's folder tells."""

    name: str
    folder: Path
    records: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)

    def names(self, split: str) -> list[str]:
        found: dict[str, None] = {}
        for record in self.records:
            if record.get("split") == split:
                found |= {name: None for name, value in record.items() if _is_number(value)}
        return [name for name in found if name not in _COLUMNS and not name.startswith("chance_")]

    def points(self, name: str, split: str, axis: str) -> list[tuple[float, float]]:
        """Finite values of `name` over "epoch" or "step", in order."""
        rows = (record for record in self.records if record.get("split") == split)
        return [
            (float(row[axis]), float(row[name]))
            for row in rows
            if _is_number(row.get(name)) and math.isfinite(row[name]) and _is_number(row.get(axis))
        ]

    def last(self, column: str) -> float:
        return max((float(row[column]) for row in self.records if _is_number(row.get(column))), default=0.0)

    def chance(self, name: str) -> float | None:
        found = [record[f"chance_{name}"] for record in self.records if _is_number(record.get(f"chance_{name}"))]
        return float(found[-1]) if found else None

    @property
    def train(self) -> dict[str, Any]:
        section = self.config.get("train")
        return section if isinstance(section, dict) else {}


def run_report(folder: Path | str, *more: Path | str, chance: Mapping[str, float] | None = None) -> Report:
    """Read the run in `folder`, and the runs to compare it with.

    Args:
        chance: what guessing gives, by name of the evaluation's number.

    Raises:
        UserError: a folder holds no run, or one that has recorded nothing yet.
    """
    folders = [Path(folder), *(Path(one) for one in more)]
    runs = [_read(one, name) for one, name in zip(folders, _names(folders), strict=True)]
    axis = "epoch" if max(run.last("epoch") for run in runs) > 1 else "step"
    levels = dict(chance or {})
    for run in runs:
        for name in run.names("eval"):
            if name not in levels and (found := run.chance(name)) is not None:
                levels[name] = found
    evaluated = _unique(runs, "eval")
    trained = [name for name in _unique(runs, "train") if name not in _RUNNING]
    if _has_one_part(runs, trained):
        trained.remove("loss")
    sections: list[Section] = []
    # What was measured once is no curve; cards and table have it.
    repeated = {name for name in evaluated if any(len(run.points(name, "eval", "step")) > 1 for run in runs)}
    learned = [name for name in evaluated if name in repeated and name not in trained]
    if evaluated:
        blocks: list[Block] = [Charts(charts=_evaluation_charts(runs, learned, axis, levels))] if learned else []
        sections.append(Section(title="What it can do", blocks=[*blocks, _last_values(runs, evaluated, levels)]))
    if trained:
        losses = Charts(charts=[_chart(runs, name, axis, ("train", "eval"), levels) for name in trained])
        intro = "Pale is what was recorded in training, bold is smoothed."
        sections.append(Section(title="How it learned", intro=intro, blocks=[losses]))
    sections.append(_how_it_ran(runs, axis))
    title = f"Training run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs compared"
    return Report(
        title=title,
        subtitle="" if len(runs) == 1 else ", ".join(run.name for run in runs),
        summary=[_summary(run) for run in runs],
        headlines=_headlines(runs[0], evaluated, levels) if len(runs) == 1 else [],
        sections=sections,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read(folder: Path, name: str) -> _Run:
    path = folder / "metrics.jsonl"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder that training wrote")
    if not path.is_file():
        inner = sorted(child.parent.name for child in folder.glob("*/metrics.jsonl"))
        named = "name the folder that training wrote, or one of results that openblip evaluate wrote"
        hint = f"the runs in it are {', '.join(inner)}" if inner else named
        raise UserError(f"{folder} holds no run, since there is no metrics.jsonl in it; {hint}")
    records = [record for record in read_jsonl(path) if isinstance(record, dict) and _is_number(record.get("step"))]
    if not records:
        raise UserError(f"{path} holds no records yet; wait for the run's first ones, or lower train.log_every")
    records.sort(key=lambda record: record["step"])
    log = folder / "log.txt"
    return _Run(
        name=name,
        folder=folder,
        records=records,
        config=_read_json(folder / "config.json"),
        versions=_read_json(folder / "versions.json"),
        skipped=[record for record in read_jsonl(folder / "skipped.jsonl") if isinstance(record, dict)],
        log=read_lines(log, paths=True)[-_LOG_LINES:] if log.is_file() else [],
    )


def _read_json(path: Path) -> dict[str, Any]:
    """A table that may be missing; a broken one is as good as missing, since the curves do not need it."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _names(folders: Sequence[Path]) -> list[str]:
    """Each folder's own name, with as many of its parents as it takes to tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"the run {folders[0]} is named twice; name each run once")


def _unique(runs: Sequence[_Run], split: str) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.names(split)))


def _has_one_part(runs: Sequence[_Run], trained: Sequence[str]) -> bool:
    """Whether there is a "loss" that is the same curve as its only part, such as "loss_lm"."""
    parts = [name for name in trained if name.startswith("loss_")]
    if "loss" not in trained or len(parts) != 1 or any("loss" in run.names("eval") for run in runs):
        return False
    return all(run.points("loss", "train", "step") == run.points(parts[0], "train", "step") for run in runs)


def _unit(runs: Sequence[_Run], name: str) -> str:
    """Numbers named like shares, and within 0 and 1, are shown in percent."""
    values = [y for run in runs for split in ("train", "eval") for _, y in run.points(name, split, "step")]
    inside = bool(values) and min(values) >= 0 and max(values) <= 1
    return "fraction" if inside and _SHARE.search(name) and not _LOWER.search(name) else ""


def _title(name: str) -> str:
    words = [_SPELLED.get(word, word) for word in re.split(r"[_ ]+", name.replace("/", " / "))]
    title = " ".join(words)
    return title[:1].upper() + title[1:]


def _series(run: _Run, name: str, split: str, axis: str, label: str, color: int | None) -> Series | None:
    points = thin(run.points(name, split, axis), _MOST_POINTS)
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    noisy = split == "train" and name not in ("learning_rate", "skipped")
    return Series(name=label, x=xs, y=ys, role="raw" if noisy else "line", color=color)


def _chart(runs: Sequence[_Run], name: str, axis: str, splits: Sequence[str], levels: Mapping[str, float]) -> Chart:
    """One number: a line for each run and split."""
    found = []
    both = len([split for split in splits if any(name in run.names(split) for run in runs)]) > 1
    for i, run in enumerate(runs):
        for j, split in enumerate(splits):
            label = " ".join([split] * both + [run.name] * (len(runs) > 1)) or _title(name)
            found.append(_series(run, name, split, axis, label, i % NUM_COLORS if len(runs) > 1 else j))
    series = [one for one in found if one]
    unit = _unit(runs, name)
    return Chart(title=_title(name), series=series, x_label=axis, unit=unit, reference=levels.get(name))


def _evaluation_charts(
    runs: Sequence[_Run], names: Sequence[str], axis: str, levels: Mapping[str, float]
) -> list[Chart]:
    """One chart a number; of a single run, those that differ in a last number only (recall@1, 5, 10) share one."""
    families: dict[str, list[str]] = {}
    for name in names:
        stem = re.sub(r"[@_]?(?:at_?)?\d+$", "", name)
        alone = len(runs) > 1 or not stem or stem == name or _unit(runs, name) != "fraction"
        families.setdefault(name if alone else stem, []).append(name)
    charts: list[Chart] = []
    for family, members in families.items():
        if len(members) == 1:
            charts.append(_chart(runs, members[0], axis, ("eval",), levels))
            continue
        ends = {name: name.removeprefix(family).strip("_") for name in members}
        series = [_series(runs[0], name, "eval", axis, end, None) for name, end in ends.items()]
        charts.append(
            Chart(
                title=_title(family),
                series=[one for one in series if one],
                x_label=axis,
                unit="fraction",
                reference=levels.get(members[0]),
                reference_name=f"chance of {ends[members[0]]}",
            )
        )
    return charts


def _last_values(runs: Sequence[_Run], names: Sequence[str], levels: Mapping[str, float]) -> Table:
    """Last and best value of each number (one run), or the last ones of each run."""
    if len(runs) == 1:
        run = runs[0]
        rows: list[list[Cell | float | str | None]] = []
        for name in names:
            unit, points = _unit(runs, name), run.points(name, "eval", "epoch")
            if not points:
                continue
            best = (min if _is_lower(name, run) else max)(points, key=lambda point: point[1])
            level = spell(levels.get(name), unit) if name in levels else ""
            found = [spell(points[-1][1], unit), spell(best[1], unit), spell_short(best[0]), level]
            rows.append([_title(name), *found])
        heads = ["metric", "last", "best", "best at epoch", "chance"]
        columns = [Column(name=head) for head in (heads if any(row[-1] for row in rows) else heads[:-1])]
        return Table(title="All metrics", columns=columns, rows=[row[: len(columns)] for row in rows])
    columns = [Column(name="run")]
    for name in names:
        better = "lower" if _is_lower(name, runs[0]) else "higher"
        columns.append(
            Column(
                name=_title(name),
                unit=_unit(runs, name),
                better="lower" if better == "lower" else "higher",
                reference=levels.get(name),
            )
        )
    table: list[list[Cell | float | str | None]] = []
    for run in runs:
        ends = [run.points(name, "eval", "step") for name in names]
        table.append([run.name, *(points[-1][1] if points else None for points in ends)])
    return Table(title="Last values", columns=columns, rows=table)


def _is_lower(name: str, run: _Run) -> bool:
    if name == run.train.get("monitor"):
        return run.train.get("monitor_mode") == "min"
    return _LOWER.search(name) is not None


def _headlines(run: _Run, names: Sequence[str], levels: Mapping[str, float]) -> list[Headline]:
    monitor = run.train.get("monitor")
    shares = [name for name in names if _unit([run], name) == "fraction"]
    # Of recall@1, @5, @10 the first says it all.
    families = {re.sub(r"\d+$", "", name): name for name in reversed(shares)}
    chosen = [name for name in names if name == monitor]
    chosen += [name for name in shares if name in families.values() and name not in chosen]
    chosen += [name for name in names if name not in shares and name not in chosen and not chosen]
    heads = []
    for name in chosen[:_MOST_HEADLINES]:
        points = run.points(name, "eval", "epoch")
        if not points:
            continue
        lower = _is_lower(name, run)
        best = (min if lower else max)(points, key=lambda point: point[1])
        unit = _unit([run], name)
        why = f"best was {spell(best[1], unit)} at epoch {spell_short(best[0])}" if best[1] != points[-1][1] else ""
        heads.append(
            Headline(
                label=_title(name),
                value=points[-1][1],
                unit=unit,
                reference=levels.get(name),
                better="lower" if lower else "higher",
                explanation=why,
            )
        )
    if heads:  # alone it would say no more than the summary
        heads.append(Headline(label="Time spent", value=run.last("time"), unit="seconds"))
    return heads


def _summary(run: _Run) -> str:
    step, epoch, seconds = run.last("step"), run.last("epoch"), run.last("time")
    text = f"**{run.name}**: {step:,.0f} steps ({spell(epoch)} epochs) in {spell(seconds, 'seconds')}"
    rates = [y for _, y in run.points("images_per_second", "train", "step")]
    if rates:
        text += f", {spell(median(rates))} images a second"
    steps, epochs = run.train.get("max_steps") or 0, run.train.get("epochs") or 0
    if step < steps:
        text += f"; {steps:,.0f} steps were planned"
    elif not steps and epoch < epochs - 1e-3:
        text += f"; {epochs} epochs were planned"
    return text + "."


def _how_it_ran(runs: Sequence[_Run], axis: str) -> Section:
    names = [name for name in _RUNNING if any(run.points(name, "train", axis) for run in runs)]
    names = [n for n in names if n != "skipped" or any(y for run in runs for _, y in run.points(n, "train", axis))]
    blocks: list[Block] = []
    if names:
        blocks.append(Charts(charts=[_chart(runs, name, axis, ("train",), {}) for name in names]))
    for run in runs:
        if run.skipped:
            blocks += _skipped(run, alone=len(runs) == 1)
    for other in runs[1:]:
        changed = differences(runs[0].config, other.config)
        title = f"Settings of {other.name} that are not those of {runs[0].name} ({len(changed)})"
        facts = [Fact(name=name, value=values) for name, _, values in (line.partition(": ") for line in changed)]
        blocks.append(Details(title=title, facts=facts, note="" if facts else "They were configured alike."))
    for run in runs:
        ending = f" of {run.name}" if len(runs) > 1 else ""
        for title, table in (("Configuration", run.config), ("Versions and machine", run.versions)):
            if table:
                blocks.append(Details(title=title + ending, facts=_flat(table)))
        if run.log:
            blocks.append(Details(title=f"End of the log{ending}", lines=run.log))
    return Section(title="How it ran", blocks=blocks)


def _skipped(run: _Run, *, alone: bool) -> list[Block]:
    causes = Counter(str(record.get("cause", "unknown")) for record in run.skipped)
    examples: dict[str, dict[str, Any]] = {}
    for record in run.skipped:
        examples.setdefault(str(record.get("cause", "unknown")), record)
    rows: list[list[Cell | float | str | None]] = [
        [cause, count, f"{examples[cause].get('key', '')}: {examples[cause].get('detail', '')}".strip(": ")]
        for cause, count in causes.most_common()
    ]
    where = "" if alone else f" in {run.name}"
    columns = [Column(name="cause"), Column(name="samples", unit="count"), Column(name="for example")]
    total = len(run.skipped)
    were = "samples were" if total > 1 else "sample was"
    message = f"{total:,} broken {were} skipped{where}; `skipped.jsonl` lists them all."
    return [Text(paragraphs=[message], tone="warning"), Table(columns=columns, rows=rows)]


def _flat(table: Mapping[str, Any], where: str = "") -> list[Fact]:
    facts = []
    for name, value in table.items():
        path = f"{where}.{name}" if where else str(name)
        if isinstance(value, dict):
            facts += _flat(value, path)
        elif isinstance(value, list):
            facts.append(Fact(name=path, value=" ".join(map(str, value)) or "none"))
        else:
            facts.append(Fact(name=path, value="none" if value is None else str(value)))
    return facts
