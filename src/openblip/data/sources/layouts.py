"""JSON objects that hold a data set, as rows: COCO's annotations, Karpathy's splits, VQA's pair of files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openblip.core.errors import UserError
from openblip.core.text import read_json
from openblip.data.sample import BrokenSample
from openblip.data.sources.base import SourceConfig
from openblip.data.sources.cells import IMAGE_COLUMNS, given_id
from openblip.data.sources.paths import image_roots

__all__ = ["rows_of_object"]


def rows_of_object(content: Mapping[str, Any], path: Path, config: SourceConfig) -> Iterator[Any]:
    """Yield the rows of the object in `path`.

    Raises:
        UserError: it is laid out in no known way, or holds only half of a data set.
    """
    images, annotations = content.get("images"), content.get("annotations")
    if _is_vqa(content, "questions") or _is_vqa(content, "annotations"):
        yield from _vqa(content, path, config)
    elif isinstance(images, list) and isinstance(annotations, list) and (annotations or not config.need_texts):
        yield from _coco(images, annotations, path, config)
    elif isinstance(images, list):
        yield from _images_alone(images, path, config)
    elif isinstance(content.get("sentences"), list) and isinstance(content.get("videos"), list):
        yield from _msrvtt(content["videos"], content["sentences"])
    elif isinstance(annotations, list):
        yield from annotations
    elif isinstance(content.get("data"), list):  # TextCaps'
        yield from content["data"]
    elif content and all(isinstance(row, dict) and "question" in row for row in content.values()):  # GQA's
        yield from ({"question_id": number, **row} for number, row in content.items())
    elif any(str(name).strip().lower() in IMAGE_COLUMNS for name in content):
        yield content  # one row, not in a list
    else:
        raise UserError(
            f"{path} is an object of {', '.join(map(repr, list(content)[:8]))}; a captions file is a list of "
            '{"image", "caption"}, or has "images" with "sentences" (Karpathy) or "annotations" (COCO)'
        )


def _coco(images: list[Any], annotations: list[Any], path: Path, config: SourceConfig) -> Iterator[Any]:
    """COCO's annotations with their images; what is listed twice, or has no annotation, is named at the end."""
    known: dict[str, list[Mapping[str, Any]]] = {}
    broken: list[BrokenSample] = []
    alone: list[Mapping[str, Any]] = [
        image for image in images if isinstance(image, dict) and not given_id(image.get("id"))
    ]
    for number, image in enumerate(images):
        if not isinstance(image, dict) or not (key := given_id(image.get("id"))):
            continue
        owners = known.setdefault(key, [])
        if any(owner.get("file_name") == image.get("file_name") for owner in owners):
            label = f"{path.name} images[{number}]"
            broken.append(BrokenSample("bad-row", label, f"image {key} is listed already"))
        owners.append(image)
    described: set[str] = set()
    for number, row in enumerate(annotations):
        key = given_id(row.get("image_id")) if isinstance(row, dict) else ""
        described.add(key)
        yield _annotation(row, known.get(key, []), key, f"{path.name}[{number}]", config)
    alone += [owners[0] for key, owners in known.items() if key not in described]
    for image in alone:
        key, name = given_id(image.get("id")), image.get("file_name")
        if config.need_texts:
            detail = f"no annotation has its image_id, {key}" if key else "it has no id, and so no annotation"
            broken.append(BrokenSample("no-text", f"{path.name} image {key or repr(name)}", detail))
        else:
            yield {"image": name, "image_id": key}
    yield from broken


def _annotation(row: Any, owners: list[Mapping[str, Any]], key: str, label: str, config: SourceConfig) -> Any:
    """An annotation with the name of its image, of those that have its image id."""
    if not isinstance(row, dict):
        return row
    if len({repr(owner.get("file_name")) for owner in owners}) > 1:
        return BrokenSample("bad-row", label, f"several images have its image_id, {key}")
    if owners:
        kept = {name: owners[0][name] for name in config.meta_columns if name in owners[0]}
        return {**kept, "image": owners[0].get("file_name"), **row}
    if "image" in row or config.image_name:  # which names its image itself
        return row
    detail = f'no image under "images" has its image_id, {key}' if key else "it has no image_id"
    return BrokenSample("bad-row", label, detail)


def _images_alone(images: list[Any], path: Path, config: SourceConfig) -> Iterator[Any]:
    """Karpathy's images with their sentences; COCO's image_info, which has none."""
    with_texts = any(isinstance(image, dict) and image.get("sentences") for image in images)
    if images and not with_texts and config.need_texts:
        raise UserError(
            f'{path} lists images without captions (as COCO\'s image_info files do): it has neither "annotations" '
            'nor "sentences"; give the file with the captions, or caption the folder of the images'
        )
    for image in images:
        if not isinstance(image, dict):
            yield image
            continue
        folder, name = image.get("filepath", ""), image.get("filename", image.get("file_name"))
        yield {
            **image,
            "image": f"{folder}/{name}" if folder and name else name,
            "caption": image.get("sentences"),
            "image_id": image.get("cocoid", image.get("imgid", image.get("id"))),
        }


def _msrvtt(videos: list[Any], sentences: list[Any]) -> Iterator[Any]:
    """MSR-VTT's captions with the split of their videos."""
    splits = {given_id(one.get("video_id")): one.get("split") for one in videos if isinstance(one, dict)}
    for row in sentences:
        name = given_id(row.get("video_id")) if isinstance(row, dict) else ""
        yield {**row, "video": f"{name}.mp4", "split": splits.get(name)} if name else row


def _is_vqa(content: Mapping[str, Any], part: str) -> bool:
    """Whether this is one of the two files of the VQA challenge, "questions" or "annotations"."""
    rows = content.get(part)
    if not isinstance(rows, list) or "images" in content:
        return False
    first = rows[0] if rows and isinstance(rows[0], dict) else {}
    return {"question_id", "image_id"} <= first.keys() and ("question" in first) == (part == "questions")


def _vqa(content: Mapping[str, Any], path: Path, config: SourceConfig) -> Iterator[Any]:
    """Questions joined with their answers from the file beside this one."""
    here, there = ("questions", "annotations") if _is_vqa(content, "questions") else ("annotations", "questions")
    alone = here == "questions" and not config.need_answers
    other = {there: []} if alone else _partner(content, path, here, there)
    pair = {here: content, there: other}
    answers: dict[str, Mapping[str, Any]] = {}
    twice: list[BrokenSample] = []
    for number, row in enumerate(pair["annotations"]["annotations"]):
        asked = given_id(row.get("question_id")) if isinstance(row, dict) else ""
        if asked and asked in answers:
            label, detail = f"annotations[{number}] of {path.name}", "has an annotation already, which is used"
            twice.append(BrokenSample("bad-row", label, f"question {asked} {detail}"))
        elif asked:
            answers[asked] = row
    kind = content.get("data_type", other.get("data_type", "mscoco"))
    subset = str(content.get("data_subtype", other.get("data_subtype", "")))
    subset = subset.replace("test-dev", "test")  # which is a part of it, with the same images
    roots = image_roots(config.image_root, str(path.parent))
    folder = f"{subset}/" if any(os.path.isdir(os.path.join(root, subset)) for root in roots) and subset else ""
    prefix, ending = ("COCO", "jpg") if kind == "mscoco" else (kind, "png")
    for row in pair["questions"]["questions"]:
        if not isinstance(row, dict):
            yield row
            continue
        image = given_id(row.get("image_id"))
        name = f"{folder}{prefix}_{subset}_{image:0>12}.{ending}" if image.isdecimal() else None
        asked = given_id(row.get("question_id"))
        yield {**answers.get(asked, {}), **row, "image": name}
    yield from twice


def _partner(content: Mapping[str, Any], path: Path, here: str, there: str) -> Mapping[str, Any]:
    """The other file of the pair: beside `path`, of the same subset, with the same questions."""
    mine = {given_id(row.get("question_id")) for row in content[here][:50] if isinstance(row, dict)}
    usual = path.name.replace("OpenEnded_", "").replace(here, there)
    beside = (p for p in sorted(path.parent.glob("*.json")) if p != path and there in p.name.lower())
    for place in sorted(beside, key=lambda p: p.name.replace("OpenEnded_", "") != usual):
        try:
            found = read_json(place)
        except (UserError, OSError):
            continue
        if isinstance(found, dict) and _is_vqa(found, there):
            theirs = {given_id(row.get("question_id")) for row in found[there] if isinstance(row, dict)}
            subsets = {part.get("data_subtype") for part in (content, found)} - {None}
            if mine & theirs and len(subsets) < 2:
                return found
    message = "questions without answers" if here == "questions" else "answers without the questions"
    raise UserError(
        f"{path} holds {message}; put the file of the {there} beside it, as VQA publishes it ("
        f"v2_{'OpenEnded_' if there == 'questions' else ''}mscoco_..._{there}.json), and name either of the two"
    )
