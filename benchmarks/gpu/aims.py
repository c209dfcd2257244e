"""What was set out to be reached on a GPU, and whether measured rows reach it. torch is not imported here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["IMAGES_PER_S", "MEMORY", "MFU", "TIMES", "verdicts"]

IMAGES_PER_S = {"blip": 170, "stage1": 450, "stage2": 500}
"""of a step; BLIP's is 5 times the most that the paper's A100s made, 34 each"""
MFU = 0.35
"""of BLIP's step"""
MEMORY = 0.1
"""of what was predicted, that a step's peak may lie beside it"""
TIMES = 3.0
"""faster than transformers, captions in every batch and CapFilt"""

Row = Mapping[str, Any]


def verdicts(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each aim what is wanted, what was found in which case, and whether it is met: None is not measured."""
    rows = [row for stage in stages for row in stage.get("rows", ()) if "error" not in row]
    steps = {name: _named(rows, rf"{name}, batch \d+: ours") for name in IMAGES_PER_S}
    aims = [_most(f"{name}: images/s", steps[name], "images_per_s", IMAGES_PER_S[name]) for name in IMAGES_PER_S]
    aims.insert(1, _most("blip: MFU", steps["blip"], "mfu", MFU))
    aims.append(_memory([row for found in steps.values() for row in found]))
    for what, pattern in (("captions", r"captions, batch \d+: times faster"), ("CapFilt", "CapFilt: times faster")):
        # All of them have to reach it, so the least one decides.
        found = min(_named(rows, pattern), key=lambda row: row["ratio"], default=None)
        aims.append(_most(f"{what}: times faster than transformers", [found] if found else [], "ratio", TIMES))
    return aims


def _named(rows: Iterable[Row], pattern: str) -> list[Row]:
    return [row for row in rows if re.fullmatch(pattern, row["case"])]


def _most(aim: str, rows: Sequence[Row], key: str, wanted: float) -> dict[str, Any]:
    """By the row with the most."""
    row = max((row for row in rows if key in row), key=lambda row: row[key], default=None)
    if row is None:
        return {"aim": aim, "wanted": wanted, "met": None}
    return {"aim": aim, "wanted": wanted, "found": row[key], "case": row["case"], "met": row[key] >= wanted}


def _memory(rows: Sequence[Row]) -> dict[str, Any]:
    """By the row whose peak lies farthest beside what was predicted."""
    aim = {"aim": "peak memory of steps, beside what was predicted", "wanted": MEMORY}
    off = [
        (abs(row["peak_gib"] / row["predicted"]["peak_gib"] - 1), row["case"])
        for row in rows
        if "peak_gib" in row and "peak_gib" in row.get("predicted", {})
    ]
    if not off:
        return {**aim, "met": None}
    worst, case = max(off)
    return {**aim, "found": round(worst, 4), "case": case, "met": worst <= MEMORY}
