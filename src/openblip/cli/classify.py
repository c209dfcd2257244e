"""The command `classify`: which of some classes images show, without training on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from openblip.cli.arguments import (
    WHAT_IMAGES,
    Device,
    Dtype,
    ImagePaths,
    Model,
    OptionalFile,
    Tokenizer,
    need,
    person,
)
from openblip.cli.launched import find_shared_images, is_first
from openblip.cli.results import Row, check_counts, each_batch, open_predictor, read_lines, show_table, tell_figures
from openblip.core.errors import UserError
from openblip.core.places import check_new_file
from openblip.core.text import counted, rounded
from openblip.data.cards.find import find_split, named_split

if TYPE_CHECKING:
    from openblip.data.image_inputs import ImageBatch
    from openblip.metrics.classification import Accuracy

__all__ = ["classify", "read_classes"]

_SCHEMA = {
    "image": "string",
    "classes": [{"name": "string", "probability": "float", "score": "float"}],
    "truth": "string",
}
_NAMED = 5
"""folders that are no class and are named"""


def classify(
    images: ImagePaths = (),
    /,
    *,
    model: Model,
    tokenizer: Tokenizer = None,
    classes: Annotated[str, arg(metavar="LIST", help_behavior_hint="")] = "",
    template: Annotated[
        UseAppendAction[tuple[str, ...]], arg(metavar="TEXT", help_behavior_hint="(repeat it for more)")
    ] = (),
    by: Literal["itc", "itm"] = "itc",
    top: int = 5,
    truth: Literal["none", "folder"] = "none",
    batch_size: int = 16,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: OptionalFile = None,
    summary: OptionalFile = None,
) -> None:
    """Say which of some classes images show (zero-shot classification).

    Args:
        images: files, folders, globs, tars, or - for a list on standard input; imagenet:val has its own classes.
        classes: "cat,dog", or a file with one class a line; a line may begin with the class's folder and a tab.
        template: how a class is put into words, {} in its place; several are averaged; left out, "a photo of a {}".
        by: itc compares embeddings, as CLIP does; itm reads each image with each text, slower.
        top: classes that are given for each image.
        truth: folder takes the folder of an image for its class and measures the accuracy.
        batch_size: images at a time.
        out: a new file for the results: .parquet, else one JSON object a line.
        summary: with --truth folder, a new JSON file for the accuracy, whole and of each class.

    Under torchrun the processes share the images out; the results are those of one process.
    """
    need(images, WHAT_IMAGES)
    check_counts(top=top)
    check_new_file(summary, out)
    if len(images) == 1 and named_split(str(images[0])) is not None:
        images, named, truth = _of_dataset(str(images[0]), classes)
    elif classes:
        named = read_classes(classes)
    else:
        raise UserError("openblip classify needs --classes; openblip classify --help says more")
    if summary is not None and truth == "none":
        raise UserError("--summary holds the accuracy, which needs --truth folder")
    from openblip.core.sharing import joint
    from openblip.metrics.classification import Accuracy
    from openblip.tasks.classification import TEMPLATES, Classifier

    found = find_shared_images(images, device)
    names = list(named.values())
    truths = _truths([image.name for image in found], named) if truth == "folder" else {}
    predictor = open_predictor(model, tokenizer=tokenizer, device=device, dtype=dtype, batch_size=batch_size)
    classifier = Classifier(predictor.adapter, names, templates=template or TEMPLATES, by=by)
    accuracy = Accuracy(names)

    def rows(batch: ImageBatch) -> Iterator[Row]:
        ranked = classifier(predictor.encode(batch), top=max(top, 5))
        for name, scores in zip(batch.names, ranked, strict=True):
            record: dict[str, Any] = {
                "image": name,
                "classes": [
                    rounded({"name": one.name, "probability": one.probability, "score": one.score})
                    for one in scores[:top]
                ],
            }
            if truth == "folder":
                record["truth"] = truths.get(name)
                if name in truths:
                    accuracy.add(truths[name], [one.name for one in scores])
            yield f"{name}: " + ", ".join(f"{one.name} {one.probability:.1%}" for one in scores[:top]), record

    def conclude() -> None:
        if truth != "folder":
            return
        whole = Accuracy.of(joint([accuracy]))
        if is_first():
            without = len(found) - len(truths)
            _tell_accuracy(whole, model, names, [*template] or [*TEMPLATES], by, without, summary)

    each_batch(predictor, found, rows, out=out, schema=_SCHEMA, after=conclude)


def _of_dataset(spec: str, classes: str) -> tuple[tuple[str, ...], dict[str, str], Literal["folder"]]:
    """The images of a published dataset, its classes by their folders (or `classes`), and who says what is true."""
    from openblip.data.source_config import SourceConfig
    from openblip.data.sources.classes import ClassFolderSource
    from openblip.data.sources.open import open_source

    config = find_split(SourceConfig(path=spec))
    source = open_source(config)
    if not isinstance(source, ClassFolderSource):
        raise UserError(f"{spec} has no folders of classes; name its images as a folder, and --classes")
    return (config.path,), read_classes(classes) if classes else dict(source.class_names), "folder"


def read_classes(text: str) -> dict[str, str]:
    """Classes by their folders, which are called as the classes themselves unless a line says otherwise.

    Args:
        text: a list with commas, or the path of a file with one on each line.

    Raises:
        UserError: there are fewer than two, or one twice.
    """
    path = Path(text)
    if path.is_file():
        lines = read_lines(path, "a class on each line")
    elif "," not in text:
        raise UserError(f'--classes takes "cat,dog" or a file with one class a line; there is no file {text}')
    else:
        lines = [name.strip() for name in text.split(",") if name.strip()]
    pairs = [(line.partition("\t")[0].strip(), line.rpartition("\t")[2].strip()) for line in lines]
    for which, names in (("class", [name for _, name in pairs]), ("folder", [folder for folder, _ in pairs])):
        if twice := sorted({f'"{name}"' for name in names if names.count(name) > 1}):
            raise UserError(f"--classes names a {which} twice: {', '.join(twice)}")
    if len(pairs) < 2:
        raise UserError("--classes needs at least two classes")
    return dict(pairs)


def _truths(images: Sequence[str], classes: dict[str, str]) -> dict[str, str]:
    """The class of each image that lies in the folder of one, the innermost.

    Raises:
        UserError: no image does.
    """
    known = {_alike(folder): name for folder, name in classes.items()}
    truths = {}
    for image in images:
        folders = (_alike(part) for part in reversed(PurePath(image).parts[:-1]))
        if (folder := next((folder for folder in folders if folder in known), None)) is not None:
            truths[image] = known[folder]
    if not truths:
        there = sorted({PurePath(image).parent.name for image in images})
        shown = ", ".join(there[:_NAMED]) + (", ..." if len(there) > _NAMED else "")
        raise UserError(f"no image lies in a folder that is called as a class; they lie in {shown}")
    return truths


def _alike(name: str) -> str:
    return name.replace("_", " ").casefold()


def _tell_accuracy(
    accuracy: Accuracy,
    model: str,
    classes: list[str],
    templates: list[str],
    by: str,
    without: int,
    summary: Path | None,
) -> None:
    if not accuracy.images:
        print("openblip: no accuracy: no image in a folder of a class can be used", file=sys.stderr)
        return
    figures = accuracy.figures()
    tops = "".join(
        f"{name.replace('top', 'top-')} {figures[name]:.1%}, " for name in ("top1", "top5") if name in figures
    )
    left = f", {without} in no folder of a class left out" if without else ""
    seen = counted(accuracy.images, "image")
    line = f"{tops}mean of classes {figures['mean_per_class']:.1%} over {seen}{left}"
    about = {"model": model, "by": by, "templates": templates, "classes": classes, "without_truth": without}
    tell_figures(line, {**about, **figures}, summary)
    if person():
        rows = {name: f"{one['top1']:.1%} of {one['images']}" for name, one in figures["per_class"].items()}
        show_table("top-1 of each class", ("class", "accuracy"), rows)
