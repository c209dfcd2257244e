"""A run of CapFilt over drawn images, decided by the real code on scores that are given."""

from __future__ import annotations

from pathlib import Path

from serving_small import png

from openblip.bootstrap.job import CapFiltConfig, Output
from openblip.bootstrap.places import Places
from openblip.bootstrap.policy import Policy
from openblip.bootstrap.run import decide_again
from openblip.bootstrap.table import Row, Text, write_table
from openblip.core.config import to_dict
from openblip.core.files import write_json
from openblip.data.source_config import SourceConfig

SAMPLES = 30
BROKEN = 7
"""the sample whose image cannot be used"""


def text_of(number: int) -> str:
    """The web's text of a sample."""
    return f"{'A Red' if number % 3 == 0 else 'a blue'} bus, number {number}"


def judged_run(folder: Path, *, images: list[bytes] | None = None) -> Path:
    """Make `folder / "web"` with images and `folder / "run"`, two chunks over them: every second text of the web is
    dropped, every fourth written one."""
    web, places = folder / "web", Places(folder / "run")
    web.mkdir(parents=True)
    rows = []
    for number in range(SAMPLES):
        image = images[number % len(images)] if images else png(number)
        (web / f"{number:03d}.png").write_bytes(b"<html>" if number == BROKEN else image)
        (web / f"{number:03d}.txt").write_text(text_of(number))
        row = Row(key=f"{number:03d}.png", index=number, part=str(web))
        if number == BROKEN:
            row.status, row.detail = "not-an-image", f"{web} holds HTML"
        else:
            row.texts = [
                Text(text_of(number), "web", itm=0.9 if number % 2 else 0.1, itc=0.3),
                Text(f"a bus that was written {number}", "synthetic", itm=0.2 if number % 4 == 0 else 0.8, itc=0.4),
            ]
        rows.append(row)
    config = CapFiltConfig(source=SourceConfig(path=str(web)), filter="filter", chunk_size=20)
    described = {"config": to_dict(config), "captioner": "", "filter": "f", "missing_files": []}
    write_json(places.run, described)
    write_json(places.totals, {"output": None})
    for place, start in enumerate((0, 20)):
        write_table(places.table(f"00000-{place:05d}"), rows[start : start + 20])
    decide_again(places.root, Output(policy=Policy(), layout="none"))
    return places.root
