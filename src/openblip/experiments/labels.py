"""How tables and pages call the metrics of the experiments, and their units."""

from __future__ import annotations

__all__ = ["label", "labels", "unit"]

_LABELS = {
    # Captions against the scene world's truth.
    "truth": "captions true",
    "fact_accuracy": "facts true",
    "mean_facts": "facts a caption",
    "coverage": "objects named",
    # Retrieval and matching.
    "t2i_recall@1": "text finds image, ITC",
    "t2i_recall_itm@1": "text finds image, ITM",
    "t2i_recall_itm@10": "text finds image, ITM",
    "i2t_recall_itm@1": "image finds text, ITM",
    "itm_accuracy": "ITM accuracy",
    "query_likeness": "cosine of two queries",
    # Zero-shot answers.
    "answers_all": "answers right",
    "answers_colour": "colour",
    "answers_shape": "shape",
    "answers_texture": "texture",
    "answers_count": "count",
    "answers_exists": "is there",
    # CapFilt's filter and captioner (`judges.capfilt_rows`).
    "texts": "number",
    "true": "true",
    "kept": "kept",
    "precision": "of the kept, true",
    "recall": "of the true, kept",
    "auc": "AUC",
    "true_web": "web texts true",
    "auc_half_true": "AUC, half-true texts alone",
    "itm_of_true": "mean ITM of the true",
    "itm_of_false": "of the false",
    "true_synthetic": "written texts true",
    "distinct": "different texts",
    "auc_synthetic": "AUC of ITM",
    "auc_log_prob": "AUC of the captioner's log-probability",
    # Cost of a training step (`cost.step_cost`).
    "trained_parameters": "trained parameters",
    "parameters": "parameters in all",
    "gflops": "GFLOPs a step",
    "seconds": "seconds a step",
    "peak_mb": "peak memory, MB",
}
_COUNTS = ("trained_parameters", "parameters", "texts", "images", "steps")
_PLAIN = ("mean_facts", "query_likeness", "gflops", "seconds", "minutes", "peak_mb", "itg_perplexity", "chance")
"""neither counts nor fractions"""
_PREFIXES = {"novel_": "{}, new combinations", "cached_": "from cached features"}
_SUFFIXES = ("_web", "_synthetic")
"""origins of texts, which a table names once"""


def label(name: str) -> str:
    """What a metric is called; one without a label is called by its name."""
    if name in _LABELS:
        return _LABELS[name]
    for prefix, form in _PREFIXES.items():
        if name.startswith(prefix):
            return form.format(label(name.removeprefix(prefix)))
    return _LABELS.get(_base(name), name)


def labels(*names: str) -> dict[str, str]:
    """The labels of several metrics, by name."""
    return {name: label(name) for name in names}


def unit(name: str) -> str:
    """Unit of a metric as a report's column has it: "fraction", "count", or "" for a plain value."""
    base = _base(name)
    return "count" if base in _COUNTS else "" if base in _PLAIN else "fraction"


def _base(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
