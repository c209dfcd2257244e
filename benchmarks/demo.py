"""What `openblip demo` reaches in its time: stored for each kind of CPU, and as the table of the README.

    openblip demo --out runs/demo
    python -m benchmarks.demo runs/demo --as bfloat16    # or float32, avx2; stores it, prints the table

With the variables of `make test-old-cpu` set, the demo runs as on a CPU that has AVX2 alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.tables import text_table
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.experiments.demo.stages import STAGES

__all__ = ["KINDS", "collect", "lines", "stored"]

RESULTS = Path(__file__).parent / "results"
KINDS = {"bfloat16": "AVX-512, bfloat16", "float32": "AVX-512, float32", "avx2": "AVX2 alone"}
"""of CPUs that the demo is stored for, and how the table calls them"""


def collect(folder: Path) -> dict[str, Any]:
    """What a finished demo planned and reached: its plan.json, with what the "stages" reported.

    Raises:
        UserError: the folder holds no finished demo.
    """
    stages = {name: folder / "stages" / f"{name}.json" for name in STAGES}
    missing = [name for name, path in stages.items() if not path.is_file()]
    if missing or not (folder / "plan.json").is_file():
        raise UserError(f"{folder} holds no finished demo: {', '.join(missing) or 'plan.json'} is missing")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {**plan, "stages": {name: json.loads(path.read_text(encoding="utf-8")) for name, path in stages.items()}}


def stored() -> dict[str, dict[str, Any]]:
    """The stored demos, by kind of CPU."""
    files = {kind: RESULTS / f"demo-{kind}.json" for kind in KINDS}
    return {kind: json.loads(file.read_text(encoding="utf-8")) for kind, file in files.items() if file.is_file()}


def minutes(demo: dict[str, Any]) -> float:
    """That the whole took, the calibration included."""
    seconds: float = sum(stage["seconds"] for stage in demo["stages"].values())
    return (seconds + demo["calibration"]["seconds"]) / 60


def lines(demos: dict[str, dict[str, Any]]) -> list[str]:
    """The table of the README."""
    found = [_column(demo) for demo in demos.values()]
    rows = [[name, *(column[name] for column in found)] for name in found[0]]
    return text_table(["", *(KINDS[kind] for kind in demos)], rows)


def _column(demo: dict[str, Any]) -> dict[str, str]:
    stages, plan = demo["stages"], demo["plan"]
    test, novel = stages["measure"]["test"], stages["measure"]["novel"]
    beam, greedy, found = test["captioner_beam"], test["captioner"], test["matcher"]
    judged, again = stages["capfilt"]["judged"], stages["again"]
    asked = stages["zero-shot"]["test"]
    steps = ", ".join(f"{stages[name]['steps']:,}" for name in ("pretrain", "captioner", "matcher"))
    finds = f"a text finds its image among {test['images']}: by ITC, re-ranked by ITM"
    learners = [again[name] for name in ("as found", "cleaned") if name in again]
    return {
        "minutes planned, taken": f"{demo['minutes']:g}, {minutes(demo):.1f}",
        "model; steps of pre-training, captioner, matcher": f"{plan['model']}; {steps}",
        "captions of unseen images that are true in every fact": f"{beam['truth']:.0%}",
        "the same with combinations of shape and colour never seen": f"{novel['captioner_beam']['truth']:.0%}",
        "facts in a caption": f"{beam['mean_facts']:.1f}",
        "greedy captions: true in every fact; facts": f"{greedy['truth']:.0%}; {greedy['mean_facts']:.1f}",
        "ITM tells own from other texts": f"{found['itm_accuracy']:.0%}",
        finds: f"{found['t2i_recall@1']:.0%}, {found['t2i_recall_itm@1']:.0%}",
        "CapFilt's filter on web texts: precision, recall": _shares(
            judged.get("precision_web"), judged.get("recall_web")
        ),
        "captioners of web pairs as found, cleaned: objects named rightly": _shares(
            *(learner["coverage"] for learner in learners)
        ),
        "their captions: true in every fact; facts": "; ".join(
            (
                _shares(*(learner["truth"] for learner in learners)),
                ", ".join(f"{learner['mean_facts']:.1f}" for learner in learners),
            )
        ),
        "questions that BLIP-2 answers; without the image; by guessing": _shares(
            asked["decoder"]["sees"]["answers_all"], asked["decoder"]["blind"]["all"], asked["guessing"]["all"]
        ),
    }


def _shares(*values: float | None) -> str:
    return ", ".join("-" if value is None else f"{value:.0%}" for value in values) or "too few pairs kept"


def main(arguments: list[str] | None = None) -> None:
    """Store a demo and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a finished demo")
    parser.add_argument("--as", dest="kind", choices=KINDS, required=True, help="kind of CPU that it ran on")
    options = parser.parse_args(arguments)
    write_json(RESULTS / f"demo-{options.kind}.json", collect(options.folder))
    print("\n".join(lines(stored())))


if __name__ == "__main__":
    main()
