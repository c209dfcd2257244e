"""How the threads of this process wait for each other.

GNU's OpenMP, which torch brings on Linux, lets a thread that waits spin for millions of rounds before it sleeps.
Where anything else runs on the cores (a worker that decodes images, another job), the thread it waits for does not
get on meanwhile: on two cores with one other busy process a training step of a small model took 5.0 s, and 0.3 to
0.7 s with few rounds. With nothing else running it took 0.28 s and 0.31 to 0.33 s.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["SPIN_COUNT", "limit_spinning"]

SPIN_COUNT = 1000
"""rounds, some microseconds: longer than a barrier takes whose threads all run"""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads sleep soon, in this process and those it starts; to be called before torch is imported.

    What the user has set in GOMP_SPINCOUNT or OMP_WAIT_POLICY stands.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
