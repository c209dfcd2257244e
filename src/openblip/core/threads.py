"""How the threads of this process wait for each other.

GNU's OpenMP, which torch brings on Linux, lets a thread that waits spin for 300,000 rounds before it sleeps.
Where anything else runs on the cores (a worker that decodes images, another job), the thread it waits for does not
get on meanwhile. Few rounds cost a step that is alone on the machine, many one that is not: a training step of a
small model on two cores of an Intel Xeon (64 images of the demo), in seconds:

    rounds                        default  30,000  10,000   3,000   1,000
    alone                           0.125   0.133   0.120   0.156   0.168
    beside a busy Python process     0.30       -    0.16       -    0.20
    beside the same training          1.6     1.0    0.48    0.31    0.25
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["SPIN_COUNT", "limit_spinning"]

SPIN_COUNT = 10_000
"""rounds: about as fast as the default where nothing else runs"""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting threads sleep soon, in this process and those it starts; to be called before torch is imported.

    What the user has set in GOMP_SPINCOUNT or OMP_WAIT_POLICY stands.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
