"""docs/capfilt.md: its tables are complete, its Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from capfilt_small import config, output, rows_of, run, write_tar

from benchmarks.capfilt_plan import GPUS, IMAGES, gflop_of, load, memory_bytes, plan, plan_table, speed_table
from openblip.bootstrap.policy import REASONS, Policy
from openblip.bootstrap.table import _ROW, _TEXT
from openblip.data.sinks import LAYOUTS

REPO = Path(__file__).resolve().parents[3]
PAGE = (REPO / "docs" / "capfilt.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in fenced if name == language]


def test_its_tables_are_complete() -> None:
    for name in (*_ROW, *_TEXT, *REASONS, *get_args(get_type_hints(Policy)["name"])):
        assert f"`{name}`" in PAGE, name
    for layout in LAYOUTS:
        assert layout in PAGE


def test_its_python_runs(models: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "web" / "00000.tar", 0, 5)
    run(config(models, tmp_path / "web"), tmp_path / "clean", output())
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(code, "docs/capfilt.md", "exec"), names)
    rows = rows_of(tmp_path / "clean")
    assert names["dropped"] == [text.text for row in rows for text in row.texts if not text.kept]
    (tree,) = (block for block in blocks("") if block.startswith("clean/"))
    listed = re.findall(r"^    capfilt/(\S+)", tree, flags=re.MULTILINE)
    there = [name for name in listed if any((tmp_path / "clean" / "capfilt").glob(name))]
    assert set(listed) - set(there) == {"report.html"}  # which the command writes


def test_what_it_costs_is_what_was_measured() -> None:
    capfilt, loader = load("capfilt"), load("loader")
    assert all(row["outputs_agree"] for row in capfilt["rows"])
    for table in (speed_table(capfilt), plan_table(capfilt, loader)):
        assert "\n".join(table) in PAGE
    flat = " ".join(PAGE.split())
    two_cores = next(r for r in capfilt["rows"] if (r["case"], r["dtype"]) == ("1 caption", "default"))
    fastest = next(
        cost for cost in plan(capfilt, loader) if (cost.case, cost.gpu.name) == ("1 caption", "H100 SXM")
    )
    for message in (
        f"takes {gflop_of(capfilt, '1 caption'):.0f} GFLOP with one caption and "
        f"{gflop_of(capfilt, '10 captions'):.0f} with ten",
        f"{memory_bytes() / 1e6:.0f} MB of them",
        f"{loader['cpu_ms_per_image']['evaluation']:.2f} ms of a core",
        f"they would take {IMAGES / two_cores['ours_images_per_s'] / 86400:,.0f} days",
        f"{50e3 / fastest.ms_per_image / 1e6:.2f} GB/s for each H100",
    ):
        assert message in flat, message
    same = ("float32", "bfloat16")
    goals = {("1 caption", "default"): 4, ("10 captions", "default"): 20}
    goals |= {(case, dtype): n for case, n in (("1 caption", 2.5), ("10 captions", 12)) for dtype in same}
    missed = sorted(
        (row["case"], row["dtype"]) for row in capfilt["rows"] if row["ratio"] < goals[row["case"], row["dtype"]]
    )
    assert missed == [("1 caption", "bfloat16"), ("10 captions", "bfloat16")], "the page says so"


def test_what_engines_cost_is_what_was_measured() -> None:
    rows = load("capfilt-engines")["rows"]
    assert all(row["outputs_agree"] for row in rows)
    for row in rows:
        cells = (
            f"| {row['case'].split(',')[0]} | {row['workers']} | {row['span_s']:.1f} s | {row['model_s']:.1f} s | "
            f"{row['overhead']:.1%} | {row['start_up_s']:.1f} s |"
        )
        assert cells in PAGE, cells
    assert {row["images"] for row in rows} == {108}
    assert next(row for row in rows if row["case"] == "ray, 2 workers")["overhead"] < 0.1, "the goal"


def test_memory_and_bytes_are_those_measured() -> None:
    few, many = load("capfilt-memory")["rows"]
    assert (few["samples"], many["samples"]) == (1000, 100_000)
    assert many["growth"] < 1.1
    flat = " ".join(PAGE.split())
    for message in (
        f"{many['decide_peak_mb']:.0f} MB at most over 100,000 samples and {few['peak_mb']:.0f} over 1,000",
        f"{many['growth'] - 1:.1%} more",
        f"takes {many['table_bytes_per_row']:.0f} bytes on disk",
        f"takes {many['decide_s']:.0f} s, {many['decide_and_write_s']:.0f} s with the training set",
        f"The table takes {IMAGES * many['table_bytes_per_row'] / 1e9:.1f} GB",
    ):
        assert message in flat, message


def test_the_plan_by_hand() -> None:
    four = {"case": "1 caption", "ours_tflop": 1.04, "ours_images_per_s": 0.5, "ours_s": 8.0}
    rows = [four, {"case": "10 captions", "ours_tflop": 0.4, "ours_images_per_s": 0.251, "ours_s": 4.0}]
    costs = plan({"rows": rows}, {"cpu_ms_per_image": {"evaluation": 3.0}})
    keys_and_values = 2 * 12 * 577 * 768 * 2  # both, in all layers, for each token of the image, of two bytes
    assert memory_bytes() == keys_and_values
    # Four images were counted with one caption, one with ten.
    for gflop, made in ((260, costs[: len(GPUS)]), (400, costs[len(GPUS) :])):
        for gpu, cost in zip(GPUS, made, strict=True):
            wanted = gflop / (0.4 * gpu.tflops) + 20 * keys_and_values / (0.6 * gpu.gb_per_s * 1e6)
            assert cost.ms_per_image == pytest.approx(wanted)
            assert cost.hours == pytest.approx([1e8 * wanted / 1000 / 3600 / count for count in (1, 8, 64)])
            assert cost.cores == pytest.approx(3 / wanted)
