"""The command that computes features of a frozen vision tower once: `cache-features`."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import arg

from openblip.cli.arguments import Data, Device, Folder, Pixels, need
from openblip.cli.launched import is_first, join
from openblip.cli.train import WHAT_DATA
from openblip.core.errors import UserError
from openblip.core.text import counted

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
    store: Literal["computed", "float16", "bfloat16", "int8"] = "computed",
    crops: int = 1,
    crop_scale: tuple[float, float] = (0.5, 1.0),
    no_flip: bool = False,
    seed: int = 0,
    batch_size: int = 32,
    shard_mb: float = 64.0,
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
        dtype: that the tower computes in, as it must in training; auto is bfloat16 where that is fast.
        store: the dtype on disk; its error is measured and reported at the end.
        crops: of each image, the whole image first; training draws one of them for each sample.
        crop_scale: range of a random crop's share of the area.
        no_flip: do not mirror half of the random crops, as where captions speak of left and right.
        seed: of the random crops, which depend on it and on an image's name alone.
        batch_size: images or crops at a time.
        shard_mb: size of a file in MB; kill -9 loses the one that is being written, other signals nothing.
        num_workers: processes that decode images; 0 decodes in a thread.

    Under torchrun the processes share the shards out; the files are those of one process.
    """
    import sys
    from dataclasses import replace

    from openblip.checkpoints.blip2_parts import open_tower
    from openblip.cli.progress import progress
    from openblip.core.runtime import choose_device
    from openblip.core.sharing import sharing
    from openblip.data.sources.open import open_source
    from openblip.models.configs import as_tower
    from openblip.tasks.families.blip2 import open_blip2
    from openblip.tasks.features import Crops, FeatureJob

    need(data, WHAT_DATA)
    if (vision is None) == (model is None):
        raise UserError("name the tower with --vision, or a BLIP-2 model that has it with --model")
    join(device)
    if model is not None:
        if image_size is not None or dtype != "float32":
            option, kept = ("dtype", "in the dtype") if image_size is None else ("image-size", "of the size")
            raise UserError(f"the tower of --model reads images {kept} it was trained with; leave --{option} out")
        tower = open_blip2(model).model.vision
    else:
        assert vision is not None
        tower = open_tower(replace(as_tower(vision), dtype=dtype, image_size=image_size))
    job = FeatureJob(
        [open_source(spec) for spec in data],
        tower,
        out,
        store=None if store == "computed" else store,
        crops=Crops(count=crops, scale=crop_scale, flip=not no_flip, seed=seed),
        batch_size=batch_size,
        shard_mb=shard_mb,
        num_workers=num_workers,
        device=choose_device(device),
    )
    height, width = tower.pixels
    _, tokens, channels = job.shape
    each = f"{tokens} x {channels} values at {width} x {height} pixels" + (
        f" in {crops} crops" if crops > 1 else ""
    )
    images, size = counted(job.total, "image"), f"{job.size / 1e9:.3g} GB in all"
    if is_first():
        print(f"openblip: {images} ({job.done} done before), {each}, {size}", file=sys.stderr, flush=True)
    with sharing(), progress(job.total, done=job.done, lines=True) as show:
        found = job.run(show)
    if not is_first():
        return
    if found.left_out:
        why = f"{out / 'skipped.jsonl'} says why"
        print(f"openblip: {found.left_out} of them cannot be used and have no features; {why}", file=sys.stderr)
    if found.error.tokens:
        changed = f"relative error {found.error.relative:.2%}, mean cosine similarity {found.error.cosine:.6f}"
        print(f"Stored as {store}: {changed} between a token before and after.")
    print(f"The features are in {out}; train with --set 'features=[\"{out}\"]'")
