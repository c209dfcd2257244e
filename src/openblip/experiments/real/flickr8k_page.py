"""The pages about the experiments on Flickr8k: tables and curves; no photograph of it is shown."""

from __future__ import annotations

from typing import Any

from openblip.experiments.page import details, measures_table, over_seeds
from openblip.report.content import Chart, Charts, Column, Report, Section, Table

__all__ = ["blip_page", "capfilt_page", "flickr8k_page", "variants_page"]

_WAYS = {
    f"{direction}_recall{suffix}": f"{label}, {by}"
    for direction, label in (("t2i", "text to image"), ("i2t", "image to text"))
    for suffix, by in (("", "ITC"), ("_itm", "re-ranked by ITM"))
}
_RECALLS = {f"recall@{k}": f"recall@{k}" for k in (1, 5, 10)}
_MATCHED = {"itm_auc": "ITM AUC", "itm_accuracy": "ITM accuracy", "itg_perplexity": "ITG perplexity"}
_WRITTEN = {
    "CIDEr": "CIDEr",
    "BLEU-4": "BLEU-4",
    "ROUGE-L": "ROUGE-L",
    "CIDEr_wrong": "CIDEr, another photograph's",
    "distinct": "different captions",
}
_KINDS = {"all": "mean of kinds", "count": "how many", "colour": "what color", "exists": "is there"}
_ANSWERED = {f"{way}_{kind}": f"{label}, {way}" for way in ("ranked", "written") for kind, label in _KINDS.items()}
_COMPARED = {
    "t2i_recall@1": "text to image @1",
    "t2i_recall_itm@1": "text to image @1, ITM",
    "i2t_recall@1": "image to text @1",
    "i2t_recall_itm@1": "image to text @1, ITM",
    **_MATCHED,
}
_COST = {
    "trained_parameters": "trained parameters",
    "gflops": "GFLOPs a step",
    "seconds": "seconds a step",
    "images": "images a step",
    "steps": "steps",
    "minutes": "minutes, by steps",
}
_GAIN = {
    "t2i_recall@1": "text to image @1",
    "t2i_recall@10": "text to image @10",
    "i2t_recall@1": "image to text @1",
    "i2t_recall@10": "image to text @10",
    "itm_auc": "ITM AUC",
    "itm_accuracy": "ITM accuracy",
}
_FILTER = {
    "auc_other": "AUC, own alt text against another image's",
    "auc_same book": "AUC, against another image's of the same book",
    "own_over_book caption": "own alt text above the book's caption",
    "own_over_written": "own alt text above the written text",
    "kept_own_paper": "own alt texts kept at 0.5",
    "kept_other_paper": "other images' alt texts kept",
    "kept_same book_paper": "those of the same book kept",
    "kept_book caption_paper": "books' captions kept",
    "kept_written_paper": "written texts kept",
    "precision_paper": "of own and other alt texts kept, the own",
}


def flickr8k_page(result: dict[str, Any]) -> Report:
    """Of `flickr8k.run`'s result."""
    mean = result["mean"]
    return Report(
        title="BLIP-2 from pretrained parts on Flickr8k",
        subtitle=f"measured on photographs that were not trained on; {_seeds(result)}",
        sections=[
            Section(
                title="Stage 1",
                intro="Every caption looks for its photograph and every photograph for one of its five captions.",
                blocks=[
                    _recalls(mean["stage 1"]["stage 1"]),
                    _transposed("Matching and writing", mean["stage 1"]["stage 1"], _MATCHED),
                ],
            ),
            Section(
                title="Stage 2 with and without stage 1",
                intro="The same language model and the same stage 2, from the Q-Former of stage 1 and from one "
                "with BERT's weights alone (the paper's figure 5). The curves are of greedy captions of some "
                "photographs, the table of beams over all.",
                blocks=[
                    Charts(charts=[_curve(result, "CIDEr"), _curve(result, "BLEU-4")]),
                    measures_table("Captions", mean["stage 2"], _own(mean["stage 2"]), _WRITTEN),
                ],
            ),
            Section(
                title="Zero-shot answers",
                intro="Questions made from the captions by rule; none was ever trained on. **Ranked**: the "
                "likeliest of the usual answers; **written**: the first of them in what is generated.",
                blocks=[measures_table("Answers right", mean["answers"], _own(mean["answers"]), _ANSWERED)],
            ),
            Section(title="How it was made", blocks=[details(result)]),
        ],
    )


def variants_page(result: dict[str, Any]) -> Report:
    """Of `flickr8k.run_variants`' result."""
    rows, config = result["mean"]["variants"], result["config"]
    return Report(
        title="Stage 1 on Flickr8k, objectives and queries",
        subtitle=_seeds(result),
        sections=[
            Section(
                title="Variants of stage 1",
                intro=f"Each is trained for {config['variant_steps']} steps of {config['batch_size']} pairs and "
                f"measured on {config['variant_images']} photographs that were not trained on. **@1, ITM**: the "
                f"best {config['rerank_k']} re-ranked. Columns of an objective that is left out are by a head that "
                "was not trained.",
                blocks=[measures_table("", rows, _own(rows), _COMPARED)],
            ),
            Section(title="How it was made", blocks=[details(result)]),
        ],
    )


def blip_page(result: dict[str, Any]) -> Report:
    """Of `flickr8k_blip.run`'s result."""
    rows, cost = result["mean"]["models"], result["mean"]["cost"]
    return Report(
        title="BLIP and BLIP-2 from the same parts on Flickr8k",
        subtitle=_seeds(result),
        sections=[
            Section(
                title="What comes of them",
                blocks=[measures_table("", rows, _own(rows), {"CIDEr": "CIDEr", "BLEU-4": "BLEU-4", **_COMPARED})],
            ),
            Section(title="What they cost", blocks=[measures_table("", cost, _own(cost), _COST)]),
            Section(title="How it was made", blocks=[details(result)]),
        ],
    )


def capfilt_page(result: dict[str, Any]) -> Report:
    """Of `flickr8k_capfilt.run`'s result."""
    mean = result["mean"]
    return Report(
        title="CapFilt on textbook images with models trained on Flickr8k",
        subtitle=_seeds(result),
        sections=[
            Section(
                title="The filter",
                blocks=[_transposed("", mean["filter"]["filter"], _FILTER)],
            ),
            Section(
                title="What a model gains that is trained on the cleaned set",
                blocks=[measures_table("", mean["gain"], _own(mean["gain"]), _GAIN)],
            ),
            Section(title="Some images, by the first seed", blocks=[_judged_texts(result["rows"])]),
            Section(title="How it was made", blocks=[details(result)]),
        ],
    )


def _judged_texts(rows: list[dict[str, Any]]) -> Table:
    """Texts of images with the filter's probability, a line for each text."""
    lines: list[list[Any]] = [
        [row["image"] if number == 0 else "", kind, found["text"], found["itm"]]
        for row in rows
        for number, (kind, found) in enumerate((kind, row[kind]) for kind in row if kind != "image")
    ]
    names = ("image", "text of", "text")
    return Table(columns=[*(Column(name=name) for name in names), Column(name="ITM")], rows=lines)


def _seeds(result: dict[str, Any]) -> str:
    count = len(result["seeds"])
    return "one seed" if count == 1 else f"{count} seeds, mean and standard deviation"


def _own(rows: dict[str, Any]) -> dict[str, str]:
    return {name: name for name in rows}


def _recalls(row: dict[str, Any]) -> Table:
    """Recalls of one row of a result, a line for each way to search."""
    lines = {way: {f"recall@{k}": row[f"{way}@{k}"] for k in (1, 5, 10)} for way in _WAYS}
    return measures_table("Recall", lines, _WAYS, _RECALLS)


def _transposed(title: str, row: dict[str, Any], names: dict[str, str]) -> Table:
    """One row of a result as a table with a metric on each line."""
    known = {label: {"value": row[name]} for name, label in names.items() if name in row}
    table = measures_table(title, known, _own(known), {"value": "value"})
    return Table(title=title, columns=[Column(name="metric"), Column(name="value")], rows=table.rows)


def _curve(result: dict[str, Any], measure: str) -> Chart:
    """Lines over the steps of stage 2, with the spread over seeds."""
    series = [
        over_seeds([curves[name] for curves in result["curves"]], measure, name=name, color=number)
        for number, name in enumerate(result["curves"][0])
    ]
    return Chart(title=measure, series=series, x_label="step of stage 2")
