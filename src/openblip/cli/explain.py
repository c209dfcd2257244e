"""The command `explain`: where a model looked in an image for each word of a text, as a drawing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from openblip.cli.arguments import Device, Model, Tokenizer, person
from openblip.cli.results import open_predictor
from openblip.core.errors import UserError, require

__all__ = ["explain"]


def explain(
    image: Annotated[Positional[Path], arg(metavar="IMAGE", help_behavior_hint="")],
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    out: Annotated[Path, arg(metavar="FILE", help_behavior_hint="(required)")],
    text: Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")] = None,
    by: Annotated[Literal["caption", "match"] | None, arg(metavar="{caption,match}", help_behavior_hint="")] = None,
    layer: Annotated[int | None, arg(metavar="NUMBER", help_behavior_hint="")] = None,
    device: Device = "auto",
) -> None:
    """Draw where a model looks for each word: Grad-CAM over a cross-attention layer, as heat maps.

    BLIP-2's queries look for a whole text, which is one map.

    Args:
        image: an image.
        out: the drawing, a new .png file.
        text: a text to match with the image, or a caption; left out, the caption that the model writes.
        by: what makes the text match, or what lets it be written; left out, match where the model can.
        layer: which cross-attention layer to show, counted from 0; left out, the one two thirds of the way up.
    """
    require("matplotlib", "report")
    from openblip.data.image_inputs import ImageInput
    from openblip.data.sample import BrokenSample
    from openblip.explain.cam import caption_maps, match_maps, peak_of, reading_layer
    from openblip.explain.drawing import draw_maps

    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype="float32", batch_size=1)
    adapter = predictor.adapter.need("explain")
    if by is None:
        matches = "match" in adapter.can and (text is not None or adapter.family == "blip2")
        by = "match" if matches else "caption"
    if by == "caption" and adapter.family == "blip2":
        raise UserError("a BLIP-2 model shows what makes a text match; leave --by caption out")
    adapter.need(by)
    if text is None and "caption" not in adapter.can:
        raise UserError("this model writes no caption; name what to look for: --text")
    try:
        shown = ImageInput(str(image), image).decode()
    except BrokenSample as broken:
        raise UserError(f"{image} cannot be used ({broken.cause}): {broken.detail}") from broken
    if text is None:
        text = predictor.caption(shown)[0][0].text
    predictor.check_texts([text])
    memory = predictor.remember(shown)
    cleaned = predictor.clean(text)
    if by == "match":
        (match,) = predictor.match(shown, text)[0]
        title = f"{text} ({match.itm_probability:.0%} by ITM)"
        maps = match_maps(predictor.model, predictor.tokenizer, memory, cleaned, layer=layer)
    else:
        title = text
        prompt = predictor.prompt
        maps = caption_maps(predictor.model, predictor.tokenizer, memory, cleaned, prompt=prompt, layer=layer)
    draw_maps(out, shown, maps, title=title)
    used = reading_layer(predictor.model, layer)
    if person():
        print(f"{out}: where the model looks for each word of: {text}")
        return
    words = [{"word": one.word, "peak": [round(part, 4) for part in peak_of(one.weights)]} for one in maps]
    print(json.dumps({"image": str(image), "text": text, "by": by, "layer": used, "words": words, "out": str(out)}))
