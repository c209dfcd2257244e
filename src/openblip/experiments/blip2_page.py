"""The page about the experiment on BLIP-2: what each part of the method is worth, with the spread over seeds."""

from __future__ import annotations

from typing import Any

from openblip.data.world.documents import ASKED
from openblip.experiments.blip2 import CURVES
from openblip.experiments.labels import labels
from openblip.experiments.page import details, measures_table, over_seeds
from openblip.report.content import Cell, Chart, Charts, Column, Report, Section, Table, Text

__all__ = ["blip2_page", "verdicts"]

_FIRST = labels("t2i_recall@1", "t2i_recall_itm@1", "i2t_recall_itm@1", "itm_accuracy", "query_likeness")
_WRITTEN = labels("truth", "fact_accuracy", "mean_facts", "coverage", "novel_truth")
_ANSWERED = labels("answers_all", "novel_answers_all", "query_likeness")
_ANSWERS = {"answers_all": "all", **labels(*(f"answers_{kind}" for kind in ASKED))}
_KINDS = {"whole": "BLIP-2, decoder", "encoder-decoder": "BLIP-2, encoder-decoder"}


def blip2_page(result: dict[str, Any]) -> Report:
    """The report of `experiments.blip2.run_blip2_experiment`'s result."""
    mean, seeds = result["mean"], len(result["seeds"])
    first, second, language = mean["stage 1"], mean["stage 2"], mean["language"]
    answers = {name: second[name] for name in _KINDS} | language
    labels = {**_KINDS, **{name: name for name in language}}
    return Report(
        title="BLIP-2 in a scene world",
        subtitle=f"what its paper claims, where the truth of every text is known; {seeds} seeds",
        sections=[
            Section(
                title="What holds",
                intro="A claim holds when the means lie further apart than the standard deviations of both "
                "together.",
                blocks=[_claims(result)],
            ),
            Section(
                title="Stage 1 before stage 2",
                intro="The same stage 2 from the Q-Former of stage 1 and from a newly initialized one (the paper's "
                "figure 5).",
                blocks=[Charts(charts=[_curve(result, "answers_all", "zero-shot answers right"),
                                       _curve(result, "truth", "captions true")]),
                        measures_table("Captions", second, {name: name for name in second}, _WRITTEN),
                        measures_table("Zero-shot answers, and how alike the queries are", second,
                                       {name: name for name in second}, _ANSWERED)],
            ),
            Section(
                title="Zero-shot answers",
                intro="No question was ever put together with an image. **Told** is the language model "
                "that reads a whole description of the image in place of seeing it: as good as it could be.",
                blocks=[measures_table("Answers right, by kind of question", answers, labels, _ANSWERS)],
            ),
            Section(title="After stage 1", blocks=[
                measures_table("", first, {name: name for name in first}, _FIRST),
                Text(paragraphs=["Without ITC no feature is trained for it, and what ITM re-ranks is drawn by "
                                 "features that mean nothing; without ITM its head is not trained."], tone="note"),
            ]),
            Section(title="How it was made", blocks=[details(result)]),
        ],
    )  # fmt: skip


Mean = list[float | None]
"""and its standard deviation"""


def verdicts(result: dict[str, Any]) -> dict[str, tuple[str, Mean, Mean]]:
    """For each claim what was found (that it holds, does not, or is within the spread), and the two that say so."""
    mean = result["mean"]
    second, language = mean["stage 2"], mean["language"]
    compared: dict[str, tuple[Mean, Mean]] = {}
    for claim, better, worse, measure in (
        ("Stage 1 helps stage 2 to answer (decoder)", "whole", "without stage 1", "answers_all"),
        ("Stage 1 helps stage 2 to caption (decoder)", "whole", "without stage 1", "truth"),
        ("Stage 1 helps stage 2 to answer (encoder-decoder)", "encoder-decoder", "encoder-decoder without stage 1",
         "answers_all"),
        ("Stage 1 at a quarter of the rate helps (decoder)", "gentle rate", "without stage 1", "answers_all"),
        ("Stage 1 at a quarter of the rate helps (encoder-decoder)", "encoder-decoder, gentle rate",
         "encoder-decoder without stage 1", "answers_all"),
        ("ITC helps", "whole", "without ITC", "answers_all"),
        ("ITM helps", "whole", "without ITM", "answers_all"),
        ("ITG helps", "whole", "without ITG", "answers_all"),
        ("16 queries are better than 4", "whole", "4 queries", "answers_all"),
        ("32 queries are better than 16", "32 queries", "whole", "answers_all"),
        ("An encoder-decoder answers better than a decoder", "encoder-decoder", "whole", "answers_all"),
    ):  # fmt: skip
        compared[claim] = second[better][measure], second[worse][measure]
    for name, row in (("decoder", "whole"), ("encoder-decoder", "encoder-decoder")):
        blind = language[f"{name}, nothing seen"]["answers_all"]
        sees, guesses = second[row]["answers_all"], language["guessing"]["answers_all"]
        compared[f"BLIP-2 answers better than its language model without the image ({name})"] = sees, blind
        compared[f"BLIP-2 answers better than one who guesses ({name})"] = sees, guesses
    return {claim: (_verdict(*means), *means) for claim, means in compared.items()}


def _claims(result: dict[str, Any]) -> Table:
    rows: list[list[Cell | float | str | None]] = [
        [claim, said, *(Cell(value=mean, spread=spread) for mean, spread in means)]
        for claim, (said, *means) in verdicts(result).items()
    ]
    shares = [Column(name=name, unit="fraction") for name in ("with", "without, or the other")]
    return Table(columns=[Column(name="claim"), Column(name="at small scale"), *shares], rows=rows)


def _verdict(better: Mean, worse: Mean) -> str:
    """Whether one mean is above another by more than the spreads."""
    first, second = better[0], worse[0]
    assert first is not None
    assert second is not None
    spread = ((better[1] or 0.0) ** 2 + (worse[1] or 0.0) ** 2) ** 0.5
    if better[1] is None:
        return "higher in the one seed" if first > second else "does not hold in the one seed"
    if first - second > spread:
        return "holds"
    return "does not hold" if second - first > spread else "cannot be distinguished from the spread"


def _curve(result: dict[str, Any], measure: str, title: str) -> Chart:
    """Lines over the steps of stage 2, with the spread over seeds."""
    titles = {"whole": "decoder", "without stage 1": "decoder without stage 1"}
    series = [
        over_seeds(
            [curves[name] for curves in result["curves"]],
            measure,
            name=titles.get(name, name),
            color=number // 2,
            role="train" if "without" in name else "line",
        )
        for number, name in enumerate(CURVES)
    ]
    return Chart(title=title, series=series, x_label="step of stage 2", unit="fraction")
