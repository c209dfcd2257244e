"""Experiments on real images and texts: `openblip experiments openstax`, described in docs/real-data.md.

The data are no part of the project: `find_data` says where they are looked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from openblip.core.errors import UserError

__all__ = ["VARIABLE", "find_data"]

VARIABLE = "OPENBLIP_REAL"
BESIDE = Path(__file__).resolve().parents[5] / "shared" / "real"


def find_data(name: str, folder: Path | None = None) -> Path:
    """The folder of one data set, in the folder of them all.

    Args:
        folder: of them all; None takes the environment variable OPENBLIP_REAL, and without it
            `shared/real` beside the repository.

    Raises:
        UserError: it is not there; says where it was looked for and how to name another place.
    """
    named = os.environ.get(VARIABLE)
    root = folder or (Path(named) if named else BESIDE)
    if not (root / name).is_dir():
        raise UserError(
            f'there is no data set "{name}" in {root}; name the folder that holds it with --data FOLDER or in '
            f"the environment variable {VARIABLE}"
        )
    return root / name
