"""Commands about a model itself: `info` says what it is, `convert` writes it in another's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

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
    from openblip.checkpoints.recognise import describe
    from openblip.checkpoints.store import open_model
    from openblip.core.config import to_dict
    from openblip.models.blip2 import Blip2

    stored = open_model(source, tokenizer=tokenizer, heads=heads)
    if isinstance(stored.model, Blip2):
        print(json.dumps(_describe_blip2(stored), indent=2, ensure_ascii=False))
        return
    model, config = stored.model, stored.model.config
    vision, text = config.vision, config.text
    parts = {
        "vision tower": [model.vision],
        "text": [part for name, part in model.named_children() if name.startswith("text_") and "proj" not in name],
    }
    counts = {name: _count(modules) for name, modules in parts.items()}
    described: dict[str, Any] = {
        "is": describe(config),
        "can": _abilities(model),
        "parameters": _count([model]),
        "parameters_by_part": counts,
        "vocab_size": stored.tokenizer.vocab_size,
        "ignored_keys": stored.ignored,
        "model": to_dict(config),
        "info": stored.info,
    }
    if not person():
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return
    height, width = vision.pixels
    rows = {
        "is": describe(config),
        "can": ", ".join(described["can"]),
        "parameters": f"{described['parameters']:,}",
        **{f"  of the {name}": f"{count:,}" for name, count in counts.items()},
        "pictures": f"{height} x {width} pixels, patches of {vision.patch_size}",
        "vision tower": f"{vision.width} wide, {vision.depth} deep, {vision.num_heads} heads",
        "text": f"{text.width} wide, {text.depth} deep, {text.num_heads} heads, up to {text.max_positions} tokens",
        "vocabulary": f"{stored.tokenizer.vocab_size:,} tokens",
        "keys not needed": f"{len(stored.ignored)}: {', '.join(stored.ignored[:4])}" if stored.ignored else "none",
        **{name: str(value) for name, value in stored.info.items()},
    }
    show_table(source, ("what", "value"), rows)


def convert(
    source: Source,
    target: Annotated[Positional[Path], arg(metavar="TARGET", help_behavior_hint="")],
    /,
    *,
    to: Literal["openblip", "transformers", "blip"],
    part: Annotated[Literal["caption", "match"] | None, arg(help_behavior_hint="")] = None,
    image_size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None,
    like: Literal["reference", "transformers"] = "reference",
    tokenizer: Tokenizer = None,
    heads: Heads = (),
    push: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
) -> None:
    """Write a model in another format: for OpenBLIP, for transformers, or as the original repository's file.

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
        raise UserError("--push uploads a folder; convert --to openblip or transformers")
    if target.exists():
        raise UserError(f"{target} exists already; choose a new place")
    from openblip.checkpoints.convert import convert_model
    from openblip.checkpoints.hub import push_folder
    from openblip.checkpoints.recognise import describe
    from openblip.checkpoints.store import open_model

    stored = open_model(source, tokenizer=tokenizer, image_size=image_size, like=like, heads=heads)
    written = convert_model(stored, target, to=to, part=part)
    told = f"; not needed: {len(stored.ignored)} keys" if stored.ignored else ""
    print(f"{describe(stored.model.config)} is in {written}{told}")
    if push is not None:
        print(f"it is at {push_folder(written, push)}")


def _count(modules: list[Any]) -> int:
    """Parameters of modules, each shared one once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def _abilities(model: Any) -> list[str]:
    from openblip.models.blip import Blip
    from openblip.models.dual import BlipDual
    from openblip.models.vqa import BlipVqa

    if isinstance(model, BlipVqa):
        return ["ask"]
    if isinstance(model, BlipDual):
        return ["embed"]
    if not isinstance(model, Blip):
        return ["judge"]
    matching = ["match", "embed", "retrieve"] if model.config.encoder else []
    return (["caption"] if model.config.decoder else []) + matching


def _describe_blip2(stored: Any) -> dict[str, Any]:
    """What `openblip info` says of a BLIP-2 model."""
    from openblip.checkpoints.blip2_parts import fingerprints
    from openblip.checkpoints.recognise import describe
    from openblip.core.config import to_dict

    model = stored.model
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters()) for name, part in model.named_children()
    }
    able = ["caption", "ask"] if model.language is not None else []
    able += ["match", "embed", "retrieve"] if model.config.matches else []
    return {
        "is": describe(model.config),
        "can": able,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_parameters": model.num_trained(),
        "parameters_by_part": counts,
        "frozen": fingerprints(model),
        "ignored_keys": stored.ignored,
        "model": to_dict(model.config),
        "info": stored.info,
    }
