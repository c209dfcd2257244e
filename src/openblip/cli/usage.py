"""What `evaluate --dry-run` and `capfilt --dry-run` print: images, arithmetic, memory and hours on a card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from openblip.cli.arguments import person

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openblip.tasks.usage import Usage, Work
    from openblip.tasks.usage_of import Counts

__all__ = ["check_dry_run", "show_usage"]


def check_dry_run(dry_run: bool, **options: Any) -> None:
    """Refuse options of --dry-run without it, and cards whose figures are not known.

    Raises:
        UserError: see above.
    """
    from openblip.core.errors import UserError
    from openblip.core.gpus import gpu_named

    given = [name for name, value in options.items() if value is not None]
    if given and not dry_run:
        raise UserError(f"--{given[0]} is for --dry-run")
    if options.get("gpu") is not None:
        gpu_named(options["gpu"])


def show_usage(
    title: str, work: Sequence[Work], counts: Counts, *, gpu: str | None, gpus: int | None, mfu: float | None
) -> None:
    """Predict the work and print it, on a terminal as a table, else as JSON.

    Raises:
        UserError: a number makes no sense.
    """
    from openblip.core.gpus import ARITHMETIC_SHARE, gpu_named
    from openblip.tasks.usage import usage

    share = ARITHMETIC_SHARE if mfu is None else mfu
    made = usage(work, gpu_named(gpu or "h100"), gpus=1 if gpus is None else gpus, mfu=share)
    dtype = str(work[0].costs.dtype).removeprefix("torch.")
    if person():
        _print(title, made, counts, dtype, share)
    else:
        print(json.dumps(_record(title, made, counts, dtype, share), indent=2, ensure_ascii=False))


def _record(title: str, made: Usage, counts: Counts, dtype: str, mfu: float) -> dict[str, Any]:
    from openblip.tasks.cost import RESERVE

    return {
        "predicted": title,
        "gpu": made.gpu.name,
        "gpus": made.gpus,
        "mfu": mfu,
        "dtype": dtype,
        "images": counts.images,
        "frames": counts.frames,
        "texts": counts.texts,
        "text_tokens": counts.text_tokens,
        "parameters": made.parameters,
        "tflop": _short(made.tflop),
        "memory_gib": {
            "weights": round(made.weights_gib, 2),
            "activations and caches": round(made.passing_gib, 2),
            f"all, with {RESERVE:g} set aside": round(made.memory_gib, 2),
            "of the card": made.gpu.gib,
        },
        "fits": made.fits,
        "seconds": {phase.name: _short(phase.seconds / made.gpus) for phase in made.phases},
        "hours": _short(made.hours),
    }


def _short(value: float) -> float:
    """With four digits, however small it is."""
    return float(f"{value:.4g}")


def _print(title: str, made: Usage, counts: Counts, dtype: str, mfu: float) -> None:
    from openblip.report import Column, Table, print_table
    from openblip.report.numbers import spell
    from openblip.tasks.cost import RESERVE

    frames = f" of {counts.frames} frames" if counts.frames > 1 else ""
    fits = "fits" if made.fits else "does not fit: name a smaller batch, model or another dtype"
    rows = {
        "hardware": f"{made.gpus} x {made.gpu.name}",
        "data": f"{counts.images:,} images{frames}, about {counts.texts:,} texts of {counts.text_tokens} tokens",
        "parameters": f"{made.parameters / 1e6:,.1f}M, {dtype}",
        "work": f"{made.tflop:,.1f} TFLOP",
        "memory": f"{made.memory_gib:.1f} GiB of {made.gpu.gib}: {fits}",
        "made of": f"weights {made.weights_gib:.1f}, activations and caches {made.passing_gib:.1f}, "
        f"set aside {RESERVE:.1f} GiB",
    }
    for phase in made.phases:
        rows[phase.name] = f"{phase.tflop:,.1f} TFLOP, {spell(phase.seconds / made.gpus, 'seconds')}"
    rows["in all"] = (
        f"{spell(3600 * made.hours, 'seconds')} at {mfu:.0%} MFU, {made.hours * made.gpus:,.2f} GPU hours"
    )
    columns = [Column(name=f"{title}, predicted"), Column(name="")]
    print_table(Table(title="", columns=columns, rows=list(rows.items())))
