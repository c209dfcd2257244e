"""Small copies of published datasets with the structure of the originals, traps included.

Every function writes below a data root as `openblip.data.cards` expects it and is named after the dataset's card.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from videos import frame, make_video

__all__ = [
    "TEN_ANSWERS",
    "aokvqa",
    "cirr",
    "coco",
    "derived",
    "everything",
    "fashioniq",
    "flickr30k",
    "gqa",
    "image",
    "imagenet",
    "karpathy",
    "msrvtt",
    "msrvttqa",
    "msvdqa",
    "nlvr2",
    "nocaps",
    "okvqa",
    "tars",
    "textcaps",
    "vg",
    "visdial",
    "vqav2",
    "write",
]

TEN_ANSWERS = ("net", "net", "net", "netting", "net", "mesh", "net", "net", "net", "a net")


def write(path: Path, content: Any, *, lines: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(row)}\n" for row in content) if lines else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def image(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (shade % 256, 90, 30)).save(path)
    return path


def _images(home: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        image(home / name, 20 * number)


def _coco_name(split: str, number: int) -> str:
    return f"{split}/COCO_{split}_{number:012}.jpg" if split.endswith(("14", "15")) else f"{split}/{number:012}.jpg"


def coco(root: Path) -> Path:
    """Karpathy's splits (rows of train in two folders, six captions in test) and the original captions."""
    home = root / "coco"
    train, val = (9, 25), (42, 73, 133)
    _images(home / "images", [_coco_name("train2014", n) for n in train])
    _images(home / "images", [_coco_name("val2014", n) for n in val])
    _images(home / "images", [_coco_name(split, n) for split in ("test2014", "test2015") for n in (1, 14)])
    _images(home / "images", [_coco_name(split, n) for split in ("train2017", "val2017") for n in train])
    _images(home / "images", [_coco_name("test2017", n) for n in (1, 14)])
    rows = [
        {"caption": f"A train caption {k} of {n}.", "image": _coco_name(folder, n), "image_id": f"coco_{n}"}
        for folder, n in (("train2014", 9), ("train2014", 25), ("val2014", 133))
        for k in range(5)
    ]
    write(home / "annotations" / "coco_karpathy_train.json", rows)
    for split, number, count in (("val", 42, 5), ("test", 73, 6)):
        row = {
            "image": _coco_name("val2014", number),
            "caption": [f"Caption {k} of {number}." for k in range(count)],
        }
        write(home / "annotations" / f"coco_karpathy_{split}.json", [row])
    for split, numbers in (("train2014", train), ("val2014", val), ("train2017", train), ("val2017", train)):
        content = {
            "info": {"year": 2014},
            "licenses": [{"id": 1, "name": "CC", "url": "http://creativecommons.org"}],
            "images": [
                {
                    "id": n,
                    "file_name": _coco_name(split, n).split("/")[1],
                    "coco_url": "https://example.com/1.jpg",
                    "license": 1,
                }
                for n in numbers
            ],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "caption": f"Original {k} of {n}."}
                for n in numbers
                for k in range(5)
            ],
        }
        write(home / "annotations" / f"captions_{split}.json", content)
    named = [{"id": n, "file_name": _coco_name("test2014", n).split("/")[1], "license": 1} for n in (1, 14)]
    info = {"info": {"year": 2014}, "licenses": [], "categories": [], "images": named}
    write(home / "annotations" / "image_info_test2014.json", info)
    return home


def karpathy(root: Path) -> Path:
    """Karpathy's own file of COCO, restval in it."""
    own = (("val2014", 133, "restval"), ("val2014", 42, "val"), ("val2014", 73, "test"))
    rows = [
        {
            "filepath": folder,
            "filename": _coco_name(folder, n).split("/")[1],
            "cocoid": n,
            "imgid": place,
            "split": split,
            "sentids": [0, 1],
            "sentences": [{"raw": f"Sentence {k} of {n}.", "tokens": ["sentence"], "sentid": k} for k in range(2)],
        }
        for place, (folder, n, split) in enumerate((("train2014", 9, "train"), *own))
    ]
    return write(root / "coco" / "annotations" / "dataset_coco.json", {"dataset": "coco", "images": rows})


def flickr30k(root: Path) -> Path:
    home = root / "flickr30k"
    _images(home / "flickr30k-images", ["1.jpg", "2.jpg", "3.jpg"])
    rows = [
        {"image": "flickr30k-images/1.jpg", "caption": f"Train caption {k}", "image_id": "flickr_1"}
        for k in range(5)
    ]
    write(home / "annotations" / "flickr30k_train.json", rows)
    for number, split in ((2, "val"), (3, "test")):
        row = {"image": f"flickr30k-images/{number}.jpg", "caption": [f"Caption {k}" for k in range(5)]}
        write(home / "annotations" / f"flickr30k_{split}.json", [row])
    lines = (f"{n}.jpg#{k}\tCaption {k} of {n} .\n" for n in (1, 2, 3) for k in range(5))
    (home / "results_20130124.token").write_text("".join(lines))
    return home


def nocaps(root: Path) -> Path:
    """Ten captions an image; domains; the test split without captions."""
    home = root / "nocaps"
    domains = ("in-domain", "near-domain", "out-domain")
    _images(home / "images", [f"{split}/{n:04}ab.jpg" for split in ("val", "test") for n in range(3)])

    def listed(split: str) -> list[dict[str, Any]]:
        return [
            {
                "id": n,
                "file_name": f"{n:04}ab.jpg",
                "coco_url": f"https://s3.amazonaws.com/nocaps/{split}/{n:04}ab.jpg",
                "open_images_id": f"{n:04}ab",
                "width": 12,
                "height": 8,
                "license": 0,
                "date_captured": "2018-11-06 11:04:33",
                **({"domain": domains[n]} if split == "val" else {}),
            }
            for n in range(3)
        ]

    captions = [
        {"image_id": n, "id": 10 * n + k, "caption": f"Caption {k} of {n}."} for n in range(3) for k in range(10)
    ]
    full = {"licenses": [], "info": {}, "images": listed("val"), "annotations": captions}
    write(home / "annotations" / "nocaps_val_4500_captions.json", full)
    write(
        home / "annotations" / "nocaps_test_image_info.json", {"licenses": [], "info": {}, "images": listed("test")}
    )
    return home


def textcaps(root: Path) -> Path:
    """One caption in a row, two rows an image; a test split without captions."""
    home = root / "textcaps"
    _images(home, ["train_images/0a.jpg", "train_images/0b.jpg", "test_images/0c.jpg"])
    for split, names, count in (("train", ("0a",), 2), ("val", ("0b",), 2), ("test", ("0c",), 0)):
        rows = [
            {
                "image_id": name,
                "image_name": name,
                "image_classes": ["Sign"],
                "flickr_original_url": "https://example.com/1.jpg",
                "set_name": split,
                **(
                    {"caption_id": k, "caption_str": f"A sign that says {k}", "reference_strs": ["a"]}
                    if count
                    else {}
                ),
            }
            for name in names
            for k in range(max(count, 1))
        ]
        content = {"dataset_type": split, "dataset_name": "textcaps", "dataset_version": "0.1", "data": rows}
        write(home / "annotations" / f"TextCaps_0.1_{split}.json", content)
    return home


def vg(root: Path) -> Path:
    home = root / "vg"
    _images(home, ["VG_100K/1.jpg", "VG_100K_2/2.jpg"])
    regions = [
        {
            "id": n,
            "regions": [{"region_id": 10 * n + k, "image_id": n, "phrase": f"region {k} of {n}"} for k in range(3)],
        }
        for n in (1, 2)
    ]
    write(home / "region_descriptions.json", regions)
    qas = [
        {"id": n, "qas": [{"qa_id": n, "image_id": n, "question": "What is this?", "answer": f"Thing {n}."}]}
        for n in (1, 2)
    ]
    write(root / "vgqa" / "question_answers.json", qas)
    return home


def tars(root: Path, name: str = "cc3m") -> Path:
    """Shards as img2dataset writes them."""
    home = root / name
    home.mkdir(parents=True)
    data = io.BytesIO()
    Image.new("RGB", (12, 8)).save(data, "JPEG")
    for shard in range(2):
        with tarfile.open(home / f"{shard:05}.tar", "w") as tar:
            for number in range(2):
                key = f"{shard:05}{number:04}"
                fields = {
                    "url": "https://example.com/1.jpg",
                    "caption": f"web text {key}",
                    "key": key,
                    "status": "success",
                }
                for ending, content in (
                    ("jpg", data.getvalue()),
                    ("txt", fields["caption"].encode()),
                    ("json", json.dumps(fields).encode()),
                ):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        write(home / f"{shard:05}_stats.json", {"count": 2, "successes": 2})
    return home


def _vqa_files(home: Path, split: str, rows: list[dict[str, Any]], *, prefix: str, kinds: bool) -> None:
    questions = [{name: row[name] for name in ("image_id", "question", "question_id")} for row in rows]
    about = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
    about["data_subtype"] = split
    write(home / f"{prefix}OpenEnded_mscoco_{split}_questions.json", {**about, "questions": questions})
    if not rows[0].get("answers"):
        return
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": row["answers"][0],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": n}
                for n, answer in enumerate(row["answers"], 1)
            ],
            "image_id": row["image_id"],
            "question_id": row["question_id"],
            **({"answer_type": row["kind"]} if kinds else {}),
        }
        for row in rows
    ]
    about = {name: value for name, value in about.items() if name != "task_type"}
    write(home / f"{prefix}mscoco_{split}_annotations.json", {**about, "annotations": annotations})


def vqav2(root: Path) -> Path:
    """The original files; the images are those of `coco`. A question stands twice at an image."""
    home = root / "vqav2"
    rows = [
        {
            "image_id": 42,
            "question": "What is this?",
            "question_id": 42000,
            "kind": "other",
            "answers": TEN_ANSWERS,
        },
        {
            "image_id": 42,
            "question": "Is it red?",
            "question_id": 42001,
            "kind": "yes/no",
            "answers": ("yes",) * 10,
        },
        {
            "image_id": 42,
            "question": "What is this?",
            "question_id": 42002,
            "kind": "other",
            "answers": ("goal",) * 10,
        },
        {
            "image_id": 73,
            "question": "How many?",
            "question_id": 73000,
            "kind": "number",
            "answers": ("2",) * 9 + ("",),
        },
    ]
    _vqa_files(home, "val2014", rows, prefix="v2_", kinds=True)
    train = [{**row, "image_id": 9 if row["image_id"] == 42 else 25} for row in rows]
    _vqa_files(home, "train2014", train, prefix="v2_", kinds=True)
    test = [{"image_id": n, "question": "What is this?", "question_id": 1000 * n} for n in (1, 14)]
    _vqa_files(home, "test2015", test, prefix="v2_", kinds=False)
    _vqa_files(home, "test-dev2015", test[:1], prefix="v2_", kinds=False)
    return home


def okvqa(root: Path) -> Path:
    home = root / "okvqa"
    rows = [{"image_id": 42, "question": "What sport is this?", "question_id": 425, "answers": ("tennis",) * 10}]
    _vqa_files(home, "val2014", rows, prefix="", kinds=False)
    _vqa_files(home, "train2014", [{**rows[0], "image_id": 9}], prefix="", kinds=False)
    return home


def aokvqa(root: Path) -> Path:
    """String ids, images of 2017, one question whose direct answers are difficult; test without answers."""
    home = root / "aokvqa"
    for split, number in (("train", 9), ("val", 25), ("test", 14)):
        rows: list[dict[str, Any]] = []
        for k in range(3):
            row = {
                "split": split,
                "image_id": number,
                "question_id": f"22{split}Q{k}zzz",
                "question": f"What is question {k}?",
                "choices": ["Ride", "train", "carry", "tie"],
            }
            if split != "test":
                row |= {
                    "correct_choice_idx": 0 if k == 0 else 2,
                    "direct_answers": ["Ride"] * 3 + ["train"] * 2 + ["walk"] * 5,
                    "rationales": ["because", "since", "as"],
                }
            row["difficult_direct_answer"] = k == 2
            rows.append(row)
        write(home / f"aokvqa_v1p0_{split}.json", rows)
    return home


def gqa(root: Path) -> Path:
    """Objects of questions by their ids; answered splits and test; all questions of train in ten files."""
    home = root / "gqa"
    _images(home / "images", ["n161313.jpg", "2405722.jpg"])
    kinds = (("query", "Jeans"), ("verify", "yes"), ("query", "a bed"))
    for part in range(10):
        row = {"imageId": "n161313", "question": f"Is it part {part}?", "answer": "yes"}
        folder = home / "train_all_questions"
        write(folder / f"train_all_questions_{part}.json", {f"07{part:07}": {**row, "isBalanced": False}})
    for split in ("train", "val", "testdev", "test", "challenge"):
        content: dict[str, Any] = {}
        for n, (kind, answer) in enumerate(kinds):
            about = {"semantic": [], "entailed": [], "isBalanced": True}
            row = {**about, "imageId": ("n161313", "2405722", "2405722")[n], "question": f"Is it question {n}?"}
            if split not in ("test", "challenge"):
                row |= {"answer": answer, "types": {"structural": kind, "semantic": "rel"}}
            content[f"20{n}{n:05}"] = row
        write(home / f"{split}_balanced_questions.json", content)
    return home


def nlvr2(root: Path) -> Path:
    """The original JSON lines, labels as strings; the images of train in a sub-folder."""
    home = root / "nlvr2"
    for split, folder in (("train", "train/7/"), ("dev", "dev/"), ("test1", "test1/"), ("test2", "test2/")):
        for pair in (0, 1):
            _images(home / "images", [f"{folder}{split}-10-{pair}-img{side}.png" for side in (0, 1)])
        rows = [
            {
                "sentence": "The bright dog is on the left.",
                "left_url": "https://example.com/1.jpg",
                "right_url": "https://example.com/2.jpg",
                "label": "True" if pair else "False",
                "identifier": f"{split}-10-{pair}-0",
                "synset": "dog",
                **({"directory": 7} if split == "train" else {}),
            }
            for pair in (0, 1)
        ]
        write(home / f"{split}.json", rows, lines=True)
    return home


def imagenet(root: Path) -> Path:
    """Three synsets of four that have images, one folder deeper in train."""
    home = root / "imagenet"
    synsets = {"n01440764": "tench", "n02012849": "crane, the bird", "n03126707": "crane, the machine"}
    for split in ("train", "val"):
        _images(home / split, [f"{synset}/{synset}_{n}.JPEG" for synset in synsets for n in range(4)])
    names = {**synsets, "n01443537": "goldfish"}
    (home / "classes.txt").write_text("".join(f"{synset}\t{name}\n" for synset, name in names.items()))
    return home


def cirr(root: Path) -> Path:
    """Four images of NLVR2's in the gallery, queries with groups of look-alikes; in train below a sub-folder."""
    home = root / "cirr"
    for split, folder, prefix in (("train", "train/34", "train"), ("val", "dev", "dev")):
        names = [f"{prefix}-{n}-0-img{n % 2}" for n in range(4)]
        _images(root / "nlvr2" / "images", [f"{folder}/{name}.png" for name in names])
        rows = [
            {
                "pairid": 12063 + n,
                "reference": names[n],
                "target_hard": names[n + 1],
                "target_soft": {names[n + 1]: 1.0},
                "caption": f"make it {colour}",
                "img_set": {"id": 1, "members": names, "reference_rank": 0, "target_rank": 1},
            }
            for n, colour in enumerate(("red", "a dog"))
        ]
        write(home / "captions" / f"cap.rc2.{split}.json", rows)
        paths = {name: f"./{folder}/{name}.png" for name in names}
        write(home / "image_splits" / f"split.rc2.{split}.json", paths)
    return home


def fashioniq(root: Path) -> Path:
    """Two texts to each pair, a gallery with an image that is in no pair."""
    home = root / "fashioniq"
    for kind in ("dress", "shirt", "toptee"):
        for split in ("train", "val"):
            names = [f"B00{kind[0].upper()}{split[0].upper()}{n}" for n in range(3)]
            _images(home / "images", [f"{name}.jpg" for name in names])
            said = ["is solid black with no sleeves.", "Is black"]
            rows = [{"target": names[1], "candidate": names[0], "captions": said}]
            write(home / "captions" / f"cap.{kind}.{split}.json", rows)
            write(home / "image_splits" / f"split.{kind}.{split}.json", names)
    return home


def visdial(root: Path) -> Path:
    """Pools of questions (without marks) and answers; ragged dialogs of test, whose last round has no answer."""
    home = root / "visdial"
    pool = [f"answer {n}" for n in range(120)]
    questions = [f"is it question {n}" for n in range(12)]

    def dialog(image: int, rounds: int, split: str) -> dict[str, Any]:
        said: list[dict[str, Any]] = []
        for place in range(rounds):
            last, answer = place == rounds - 1, (image + place) % 100
            options = [(7 * place + n) % 120 for n in range(100)]
            one: dict[str, Any] = {"question": place}
            if split != "test" or not last:
                one["answer"] = options[answer]
            if split != "test" or last:
                one["answer_options"] = options
            if split != "test":
                one["gt_index"] = answer
            said.append(one)
        return {"image_id": image, "caption": f"the caption of {image}", "dialog": said}

    lengths = {"train": {9: 10, 133: 10}, "val": {185565: 10, 284024: 10}, "test": {568676: 10, 543615: 3}}
    for split, dialogs in lengths.items():
        year = split if split == "train" else f"{split}2018"
        data = {
            "dialogs": [dialog(image, rounds, split) for image, rounds in dialogs.items()],
            "questions": questions,
            "answers": pool,
        }
        write(home / f"visdial_1.0_{split}.json", {"split": year, "version": "1.0", "data": data})
        if split != "train":
            _images(home, [f"VisualDialog_{year}/VisualDialog_{year}_{n:012}.jpg" for n in dialogs])
    dense = [
        {"image_id": image, "round_id": place, "gt_relevance": [1.0, 0.0, 0.5, *(0.0,) * 97]}
        for image, place in ((284024, 1), (185565, 10))
    ]
    write(home / "visdial_1.0_val_dense_annotations.json", dense)
    relevance = [{"image_id": 133, "round_id": 4, "relevance": [0.2, *(0.0,) * 99]}]
    write(home / "visdial_1.0_train_dense_sample.json", relevance)
    return home


def _videos(home: Path, names: Iterable[str]) -> None:
    """Videos of one shade each; files that nobody can read where there is nothing to write videos with."""
    for number, name in enumerate(names):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        if importlib.util.find_spec("av") is None:
            (home / name).write_bytes(b"no video")
        else:
            make_video(home / name, [frame(40 + 50 * number)] * 3)


def msrvtt(root: Path) -> Path:
    """BLIP's file of 1k-A, JSON lines that name clips without their ending, and those of LAVIS."""
    home = root / "msrvtt"
    _videos(home, [f"videos/video{n}.mp4" for n in (0, 6513, 9770, 7020)])
    rows = [
        {"caption": f"the caption of {n}", "clip_name": f"video{n}", "retrieval_key": f"ret{k}"}
        for k, n in enumerate((9770, 7020))
    ]
    write(home / "annotations" / "msrvtt_test.jsonl", rows, lines=True)
    for split, numbers in (("train", (0, 0)), ("val", (6513,)), ("test", (9770, 7020))):
        rows = [{"caption": f"caption {k} of {n}", "video": f"video{n}.mp4"} for k, n in enumerate(numbers)]
        write(home / "annotations" / f"retrieval_{split}.json", rows)
    return home


def msrvttqa(root: Path) -> Path:
    """LAVIS' files; the videos are those of `msrvtt`."""
    for split, number in (("train", 0), ("val", 6513), ("test", 7020)):
        rows = [
            {
                "video": f"video{number}.mp4",
                "question": question,
                "answer": answer,
                "question_id": 100 + k,
                "answer_type": question.split()[0],
            }
            for k, (question, answer) in enumerate((("what is a man doing", "run"), ("who is running", "man")))
        ]
        write(root / "msrvttqa" / "annotations" / f"qa_{split}.json", rows)
    return root / "msrvttqa"


def msvdqa(root: Path) -> Path:
    home = root / "msvdqa"
    names = {split: f"-4wsuPCjDBc_{n}_15.avi" for n, split in enumerate(("train", "val", "test"))}
    _videos(home, [f"YouTubeClips/{name}" for name in names.values()])
    for split, name in names.items():
        row = {"video": name, "question": "what is a squirrel eating", "answer": "peanut"}
        write(home / f"qa_{split}.json", [{**row, "question_id": 3, "answer_type": "what"}])
    return home


def everything(root: Path) -> Path:
    makers = (coco, flickr30k, nocaps, textcaps, vg, vqav2, okvqa, aokvqa, gqa, nlvr2, imagenet, cirr, fashioniq)
    for make in (*makers, visdial, msrvtt, msrvttqa, msvdqa):
        make(root)
    for name in ("cc3m", "cc12m", "sbu", "laion"):
        tars(root, name)
    return root


def derived(root: Path) -> Path:
    """The files of BLIP and LAVIS alone, beside the images of `everything`."""
    photo = {"image": "val2014/COCO_val2014_000000000042.jpg", "question": "What is this?"}
    ten = ["net"] * 9 + ["mesh"]
    write(root / "vqav2" / "vqa_val.json", [{**photo, "question_id": 7, "answer": ten, "dataset": "vqa"}])
    test = {"image": "test2015/COCO_test2015_000000000014.jpg", "question": "What is this?"}
    write(root / "vqav2" / "vqa_test.json", [{**test, "question_id": 8, "dataset": "vqa"}])
    write(root / "okvqa" / "annotations" / "vqa_val_eval.json", [{**photo, "question_id": 9, "answer": ten}])
    image = {"image": "n161313.jpg", "question": "Is it?", "answer": "yes"}
    write(root / "gqa" / "testdev_balanced_questions.json", [{**image, "question_id": "201"}])
    pair = [f"dev/dev-10-0-img{side}.png" for side in (0, 1)]
    write(root / "nlvr2" / "nlvr_dev.json", [{"images": pair, "sentence": "A dog.", "label": "True"}])
    write(root / "nocaps" / "nocaps_val.json", [{"image": "val/0000ab.jpg", "img_id": 0}])
    rows = [{"filename": "2.jpg", "imgid": 0, "split": "val", "sentences": [{"raw": "A dog."}, {"raw": "Two."}]}]
    write(root / "flickr30k" / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": rows})
    return root
