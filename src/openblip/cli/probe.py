"""The command `probe`: a linear layer over the frozen vision tower, trained and measured."""

from __future__ import annotations

from typing import Annotated, Literal

from tyro.conf import arg

from openblip.cli.arguments import Data, Device, Folder, Model, Tokenizer, need
from openblip.cli.results import check_counts, tell_figures
from openblip.core.errors import UserError

__all__ = ["probe"]


def probe(
    data: Data = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    test: Annotated[str, arg(metavar="DATA", help_behavior_hint="(required)")],
    out: Folder,
    pool: Literal["cls", "mean", "both"] = "cls",
    l2: Annotated[str, arg(metavar="NUMBERS", help_behavior_hint="")] = "",
    held_out: float = 0.1,
    batch_size: int = 32,
    num_workers: int = 1,
    device: Device = "auto",
) -> None:
    """Train a linear layer over the frozen vision tower to tell classes apart, and measure it (linear probe).

    Args:
        data: training images: a folder of class folders, a dataset (imagenet:train), or a table with a class in the
            text column.
        test: the images to measure on, likewise.
        out: folder for the features (kept for the next time), the layer and probe.json.
        pool: the tower's first token, the mean of its patches, or both.
        l2: strengths of the regularisation to choose from, "1e-4,1e-2"; left out, powers of ten from 1e-6 to 100.
        held_out: share of the training images of each class on which the strength is chosen.
        batch_size: images at a time.
        num_workers: processes that decode images; 0 decodes in a thread.
    """
    need(data, "one folder, dataset or table of training images")
    check_counts(batch_size=batch_size)
    if len(data) > 1:
        raise UserError("probe trains on one folder, dataset or table; put the classes of several into one")
    try:
        strengths = tuple(float(one) for one in l2.split(",")) if l2 else None
    except ValueError as error:
        raise UserError(f'--l2 takes numbers with commas, as "1e-4,1e-2", not {l2}') from error
    from openblip.cli.progress import progress as shown
    from openblip.core.files import write_json, write_tensors
    from openblip.core.runtime import choose_device
    from openblip.data.source_config import parse_spec
    from openblip.tasks.load import load
    from openblip.tasks.probe import L2, Labelled, PooledTower, check_sweep, labelled, read_features
    from openblip.tasks.probe import probe as run

    tried = strengths or L2
    check_sweep(tried, held_out)
    sources = {"train": labelled(parse_spec(data[0])), "test": labelled(parse_spec(test))}
    chosen = choose_device(device)
    tower = PooledTower(load(model, tokenizer=tokenizer, device=device, dtype="float32").model, pool)
    read: dict[str, Labelled] = {}
    for name, source in sources.items():
        with shown(len(source)) as progress:
            read[name] = read_features(
                source,
                tower,
                out / f"features-{name}",
                batch_size=batch_size,
                num_workers=num_workers,
                device=chosen,
                progress=progress,
            ).to(chosen)
    layer, classes, figures = run(read["train"], read["test"], strengths=tried, share=held_out)
    frozen = sum(parameter.numel() for parameter in tower.encoder.parameters())
    tensors = {name: getattr(layer, name).contiguous() for name in ("weight", "bias", "mean", "deviation")}
    write_tensors(out / "probe.safetensors", tensors)
    about = {"model": model, "data": data[0], "test": test, "pool": pool, "classes": classes}
    top5 = f", top-5 {figures['top5']:.1%}" if "top5" in figures else ""
    line = (
        f"top-1 {figures['top1']:.1%}{top5} over {figures['test_images']} images; "
        f"{figures['trained_parameters']:,} parameters trained, {frozen:,} frozen, l2 {figures['l2']:g}"
    )
    tell_figures(line, {}, None)
    write_json(out / "probe.json", {**about, **figures, "frozen_parameters": frozen})
