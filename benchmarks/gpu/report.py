"""What a stage finds, kept in a file after each row: a stage that is ended loses one row at most."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.stages import last_line
from openblip.core.files import write_json

if TYPE_CHECKING:
    import torch  # a stage that runs other processes does without

__all__ = ["Report"]


@dataclass
class Report:
    """Rows of a stage.

    Args:
        seconds: that the stage has.
        pretend: tiny sizes, on the CPU.
    """

    path: Path
    seconds: float
    pretend: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @property
    def device(self) -> torch.device:
        """Where to measure."""
        import torch

        return torch.device("cpu" if self.pretend else "cuda")

    @property
    def left(self) -> float:
        """Seconds until the stage is ended."""
        return self.seconds - (time.perf_counter() - self.began)

    def add(self, case: str, **values: Any) -> None:
        """Keep a row."""
        self.rows.append({"case": case, **{name: value for name, value in values.items() if value is not None}})
        write_json(self.path, self.rows)
        print(f"  {self.rows[-1]}", file=sys.stderr, flush=True)

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Within, a failure becomes the row's, and the stage goes on with its next case."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - one case must not cost the others, whatever is wrong with it
            self.add(name, error=f"{type(error).__name__}: {last_line(str(error))}")
        finally:
            if "torch" in sys.modules:
                from benchmarks.gpu.measure import forget

                forget(self.device)
