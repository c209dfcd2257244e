"""Commands about a model itself: `info` says what it is, `convert` writes it in another's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from openblip.cli.arguments import Heads, Tokenizer, person
from openblip.cli.results import show_table
from openblip.core.errors import UserError

__all__ = ["convert", "info"]

Source = Annotated[Positional[str], arg(metavar="SOURCE", help_behavior_hint="")]


def info(source: Source, /, *, tokenizer: Tokenizer = None, heads: Heads = ()) -> None:
    """Say what a model is: kind, sizes, parameters, tokenizer, and which keys of its file were not needed.

    Args:
        source: a folder of ours or of transformers, a checkpoint of the original or of LAVIS, or a hub name.
    """
    from openblip.checkpoints.store import family, model_facts, open_model

    stored = open_model(source, tokenizer=tokenizer, heads=heads)
    facts = model_facts(stored)
    if not person():
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    frozen = facts.get("frozen", {}).items()
    rows = {
        "is": facts["is"],
        "can": ", ".join(facts["can"]),
        "parameters": f"{facts['parameters']:,}",
        **({"  trained": f"{facts['trained_parameters']:,}"} if "trained_parameters" in facts else {}),
        **{f"  of the {name}": f"{count:,}" for name, count in facts["parameters_by_part"].items()},
        **family(stored).sizes(stored.model.config),
        **({"images": _images(**facts["images"])} if "images" in facts else {}),
        **{f"frozen {name}": f"{part['source']} ({part['fingerprint']})" for name, part in frozen},
        "vocabulary": f"{stored.tokenizer.vocab_size:,} tokens" if stored.tokenizer is not None else "none",
        "keys not needed": f"{len(stored.ignored)}: {', '.join(stored.ignored[:4])}" if stored.ignored else "none",
        **{name: str(value) or "none" for name, value in stored.info.items()},
    }
    show_table(source, ("what", "value"), rows)


def _images(*, pixels: list[int], patches: list[int], tokens: int) -> str:
    sizes = (" x ".join(map(str, sides)) for sides in (pixels, patches))
    return "{} pixels, {} patches, {} tokens".format(*sizes, tokens)


def convert(
    source: Source,
    target: Annotated[Positional[Path], arg(metavar="TARGET", help_behavior_hint="")],
    /,
    *,
    to: Literal["openblip", "transformers", "blip", "onnx"],
    part: Annotated[
        Literal["caption", "match"] | None, arg(metavar="{caption,match}", help_behavior_hint="")
    ] = None,
    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None,
    like: Literal["reference", "transformers"] = "reference",
    tokenizer: Tokenizer = None,
    heads: Heads = (),
    push: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
) -> None:
    """Write a model in another format: for OpenBLIP, for transformers, for onnxruntime, or as the original's file.

    Args:
        source: a folder of ours or of transformers, a checkpoint of the original or of LAVIS, or a hub name.
        target: a new folder; with --to blip a new .pth file.
        to: whose format.
        part: of a pre-training model: the captioner or the matching model (transformers has a class for each).
        image_size: interpolate the position embeddings to this resolution.
        like: for models of transformers: keep the ways in which it departs from the original.
        push: upload the folder to the Hugging Face hub under this name too.
    """
    if push is not None and to == "blip":
        raise UserError("--push uploads a folder; convert --to openblip, transformers or onnx")
    if target.exists():
        raise UserError(f"{target} exists already; choose a new place")
    from openblip.checkpoints.convert import convert_model
    from openblip.checkpoints.hub import push_folder
    from openblip.checkpoints.recognise import describe
    from openblip.checkpoints.store import open_model

    stored = open_model(source, tokenizer=tokenizer, image_size=image_size, like=like, heads=heads)
    written = convert_model(stored, target, to=to, part=part)
    message = f"; not needed: {len(stored.ignored)} keys" if stored.ignored else ""
    print(f"{describe(stored.model.config)} is in {written}{message}")
    if push is not None:
        print(f"it is at {push_folder(written, push)}")
