"""Errors of a user's pass from the process that raises them to the one that tells."""

from __future__ import annotations

import pickle

import pytest

from openblip.core.errors import MissingExtra, ToldElsewhere, UserError


@pytest.mark.parametrize(
    "error", [MissingExtra("onnx", "onnx"), UserError("there is no such file"), ToldElsewhere("elsewhere")]
)
def test_they_are_pickled(error: UserError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
