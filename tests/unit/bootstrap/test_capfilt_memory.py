"""Memory does not grow with the number of samples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from capfilt_small import write_tar

EACH = 1000
TIMES = int(os.environ.get("OPENBLIP_MEMORY_TIMES", "20"))
"""how many times the samples; 100 takes minutes"""

RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace

import openblip.bootstrap.run as under_test
from openblip.bootstrap.job import CapFiltConfig, Output
from openblip.bootstrap.summary import summarise
from openblip.bootstrap.table import Row, Text
from openblip.data.sources.base import SourceConfig


class StandIn:
    '''Takes the place of models and decoding; all else is as it is.'''

    seconds = {}

    def rows(self, source, indices):
        for index in indices:
            sample = source[index]
            texts = [Text(text, "web", itm=index % 50 / 50, itc=0.1) for text in sample.texts]
            texts.append(Text(f"written {index}", "synthetic", itm=0.3, itc=0.2, log_prob=-9.0, num_tokens=5))
            yield Row(key=sample.key, index=index, image_id=sample.key, picture=f"{index}", texts=texts)


StandIn.rows = (lambda rows: lambda self, source, indices: list(rows(self, source, indices)))(StandIn.rows)
model = SimpleNamespace(fingerprint="stand-in")
under_test.open_models = lambda *a, **k: SimpleNamespace(captioner=model, filter=model, one_vision=True)
under_test.make_pipeline = lambda *a, **k: StandIn()
source, target = sys.argv[1:]
config = CapFiltConfig(source=SourceConfig(path=source), filter="stand-in", device="cpu", dtype="float32")
from openblip.bootstrap.policy import Policy
totals = under_test.run_capfilt(config, target, Output(policy=Policy(threshold=0.97)))
assert summarise(target).samples == totals.samples
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(totals.samples, totals.pictures, peak)
"""


def peak_mb(source: Path, target: Path, samples: int) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, source, target],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    seen, pictures, peak = map(int, done.stdout.split())
    assert seen == samples
    assert pictures == samples // 50
    return peak / 1024


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow(tmp_path: Path) -> None:
    """Many times the samples take at most a tenth more."""
    first = write_tar(tmp_path / "one" / "00000.tar", 0, EACH)
    many = tmp_path / "many"
    many.mkdir()
    for number in range(TIMES):
        os.link(first, many / f"{number:05d}.tar")
    small = peak_mb(tmp_path / "one", tmp_path / "small", EACH)
    large = peak_mb(many, tmp_path / "large", TIMES * EACH)
    assert large < 1.1 * small, f"{large:.0f} MB for {TIMES * EACH} samples, {small:.0f} MB for {EACH}"
