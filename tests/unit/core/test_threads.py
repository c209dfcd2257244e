"""Threads that wait sleep soon, unless the user says otherwise."""

from __future__ import annotations

import subprocess
import sys

import pytest

from openblip.core.threads import SPIN_COUNT, limit_spinning


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": str(SPIN_COUNT)}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_what_the_user_has_set_stands(before: dict[str, str], after: dict[str, str]) -> None:
    limit_spinning(before)
    assert before == after


def test_the_command_line_sets_it_before_torch() -> None:
    script = (
        "import os, sys\nfrom openblip.cli import main\n"
        "assert main(['--version']) == 0 and 'torch' not in sys.modules\nprint(os.environ['GOMP_SPINCOUNT'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.stdout.split()[-1] == str(SPIN_COUNT), done.stderr
