"""The time within a function, added up; the drivers' programs find this file beside themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def timed(inner: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """`inner`, which adds the seconds that it takes to `spent[0]`."""

    def outer(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*args, **options)
        finally:
            spent[0] += time.perf_counter() - began

    return outer
