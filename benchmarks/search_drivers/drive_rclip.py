"""rclip over a folder: indexing and queries, with the time within its model apart.

    PYTHON_OF_RCLIP drive_rclip.py IMAGES TEXTS.json WORK TOP

The last line of the output is JSON. rclip keeps its database in WORK (RCLIP_DATADIR) and opens its published model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

from timing import timed


def main(images: str, texts: str, work: str, top: str) -> None:
    """Index the folder, search for each text, print the times."""
    os.environ["RCLIP_DATADIR"] = work
    from rclip import main as rclip
    from rclip.model import Model

    spent = [0.0]

    for name in ("compute_preprocessed_image_features", "compute_text_features"):
        setattr(Model, name, timed(getattr(Model, name), spent))
    began = time.perf_counter()
    opened, model, _ = rclip.init_rclip(images, 8, no_indexing=True)
    model.compute_text_features(["a photo"])  # opens what rclip opens when it is first needed
    getattr(model, "_session_visual_index", None)
    loaded = time.perf_counter() - began
    spent[0], began = 0.0, time.perf_counter()
    opened.ensure_index(images)
    indexed, indexed_model = time.perf_counter() - began, spent[0]
    whole, of_model = [], []
    for text in json.loads(Path(texts).read_text(encoding="utf-8")):
        spent[0], began = 0.0, time.perf_counter()
        found = opened.search(text, images, int(top))
        whole.append(time.perf_counter() - began)
        of_model.append(spent[0])
        assert found, "rclip finds nothing"
    told = {
        "version": version("rclip"),
        "images": len(opened._get_features(images)[0]),
        "load_s": loaded,
        "index_s": indexed,
        "index_model_s": indexed_model,
        "query_s": whole,
        "query_model_s": of_model,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
