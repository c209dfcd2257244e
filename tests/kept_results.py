"""The one result in a folder of `openblip evaluate --out FOLDER`, with its predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["kept_predictions", "kept_result"]


def kept_result(folder: Path) -> dict[str, Any]:
    """What the only JSON file in `folder` holds."""
    (file,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def kept_predictions(folder: Path) -> list[dict[str, Any]]:
    """The records beside it, in their order."""
    (file,) = folder.glob("*.predictions.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
