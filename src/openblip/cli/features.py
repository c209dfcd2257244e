"""The command that computes features of a frozen vision tower once: `cache-features`."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import arg

from openblip.cli.arguments import Data, Device, Folder, Pixels, need
from openblip.cli.train import WHAT_DATA
from openblip.core.errors import UserError

__all__ = ["cache_features"]

Tower = Annotated[str | None, arg(metavar="SOURCE", help_behavior_hint="")]
Start = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")]


def cache_features(
    data: Data = (),
    /,
    *,
    out: Folder,
    vision: Tower = None,
    model: Start = None,
    image_size: Pixels = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32",
    batch_size: int = 32,
    num_workers: int = 1,
    device: Device = "auto",
) -> None:
    """Compute the features of a frozen vision tower once, for training with --set features=["FOLDER"].

    Args:
        data: as for train.
        out: folder of the features; what is there already is not computed again.
        vision: the frozen tower, as for train.
        model: a BLIP-2 model whose tower to take instead.
        image_size: side of the images that the tower reads, as for train.
        dtype: that the tower computes in, as it must in training; auto is bfloat16 where that is native.
        batch_size: images at a time.
        num_workers: processes that decode images; 0 decodes in a thread.
    """
    import sys
    from dataclasses import replace

    from openblip.checkpoints.blip2_parts import as_tower, open_tower
    from openblip.core.runtime import choose_device
    from openblip.data.sources.open import open_source
    from openblip.tasks import features
    from openblip.tasks.families.blip2 import open_blip2

    need(data, WHAT_DATA)
    if (vision is None) == (model is None):
        raise UserError("name the tower with --vision, or a BLIP-2 model that has it with --model")
    if model is not None:
        if image_size is not None:
            raise UserError(
                "the tower of --model reads images of the size it was trained with; leave --image-size out"
            )
        tower = open_blip2(model).model.vision
    else:
        assert vision is not None
        tower = open_tower(replace(as_tower(vision), dtype=dtype, image_size=image_size))
    sources = [open_source(spec) for spec in data]
    progress = features.cache_features(
        sources, tower, out, batch_size=batch_size, num_workers=num_workers, device=choose_device(device)
    )
    for done, total in progress:
        print(f"openblip: {done} of {total} images", file=sys.stderr)
    if left_out := sum(map(len, sources)) - features.count_features(out):
        why = f"{out / 'skipped.jsonl'} says why"
        print(f"openblip: {left_out} of them cannot be used and have no features; {why}", file=sys.stderr)
    print(f"The features are in {out}; train with --set 'features=[\"{out}\"]'")
