"""The command `judge`: whether statements are true of two images."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

from openblip.cli.arguments import Device, Dtype, Model, Texts, Tokenizer, need, person
from openblip.cli.results import open_predictor
from openblip.core.text import json_bytes, rounded

__all__ = ["judge"]


def judge(
    first: Annotated[Positional[str], arg(metavar="LEFT", help_behavior_hint="")],
    second: Annotated[Positional[str], arg(metavar="RIGHT", help_behavior_hint="")],
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    text: Texts = (),
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Say whether statements are true of two images, with a model fine-tuned for NLVR2.

    Args:
        first: the left image.
        second: the right image.
        text: a statement about both, such as "the left image shows twice as many dogs as the right image".
    """
    need(text, 'at least one statement: --text "both images show a dog"')
    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=16)
    for judgement in predictor.judge([first] * len(text), [second] * len(text), text):
        if person():
            print(f"{judgement.probability:6.1%}  {str(judgement.true).lower():5}  {judgement.text}")
        else:
            record = {"images": [first, second], "text": judgement.text, "true": judgement.true}
            print(json_bytes({**record, "probability": rounded(judgement.probability)}).decode())
