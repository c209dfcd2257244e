"""Every `openblip` command in README and docs/ is read without an error, and runs where it can at small scale."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import COMMANDS, _read, main
from openblip.core.config import override
from openblip.core.files import remove_quietly
from openblip.core.tokenizer import TextTokenizer
from openblip.models.blip import Blip, BlipConfig
from openblip.models.configs import TextConfig, VisionConfig
from openblip.models.vqa import BlipVqa, VqaConfig
from openblip.recipes.catalogue import RECIPES, recipe_named, runs_table
from openblip.recipes.papers import RUNS

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", REPO / "README.zh-CN.md", *sorted((REPO / "docs").glob("*.md"))]
TEXTS = ("a red bus", "a red circle", "two dogs", "what color is the bus?", "is it raining?", "yes no", "a dog")
QUESTION = '{{"image": "photos/000{}.png", "question": "is it raining?", "answer": "yes"}}\n'
STAND_INS = {
    "Salesforce/blip-itm-base-coco": "F",
    "Salesforce/blip-image-captioning-base": "C",
    "model_base_capfilt_large.pth": "MODEL",
}
"""for what is published"""
USE = {
    "caption",
    "match",
    "classify",
    "score",
    "ask",
    "embed",
    "retrieve",
    "explain",
    "info",
    "convert",
    "evaluate",
    "report",
    "recipes",
    "datasets",
}
INDEX = {
    "index-build",
    "index-add",
    "index-remove",
    "index-search",
    "index-duplicates",
    "index-info",
    "index-export",
}
WRITE = {"tokenizer", "world", "capfilt", "capfilt-decide"}
TRAIN = {
    *("small-pretrain", "small-caption", "small-retrieval", "small-vqa", "small-stage1"),
    *("blip-caption", "blip-retrieval", "blip-vqa"),
}
ELSEWHERE = (
    "stage",
    "blip2-opt",
    "instructblip",
    "timm:",
    "google/",
    "facebook/",
    "bert-base",
    "openai/",
    "--push",
    "--to onnx",
    "ray",
    "{}",
    ".json ",
    "--data-root",
)
"""in commands that need a network, Ray, a language model or published datasets, or take long: those run in
tests/unit/blip2, tests/unit/bootstrap, tests/unit/tasks/test_published_questions.py and tests/unit/checkpoints"""


def commands(page: Path) -> Iterator[str]:
    """The commands of a page's fenced blocks, without launcher, prompt and comment."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"(?:\$ |(?:torchrun|accelerate launch) .*-m )?(openblip .*)", line)
            if found and "openblip ..." not in line:
                yield re.sub(r"\s+# .*", "", found.group(1))


EVERY = sorted({command for page in PAGES for command in commands(page)})


def words_of(command: str) -> list[str]:
    return shlex.split(command)[1:]


def kind_of(words: list[str]) -> str:
    """The command's name, with a recipe's for a training."""
    pair = "-".join(words[:2])
    return words[1] if words[0] == "train" else pair if pair in COMMANDS else words[0]


@pytest.mark.parametrize("command", EVERY)
def test_it_is_read(command: str) -> None:
    assert callable(_read(words_of(command)))


@pytest.mark.parametrize("command", [c for c in EVERY if c.startswith("openblip train ") and ".json " not in c])
def test_settings_of_a_training_are_known(command: str) -> None:
    words = words_of(command)
    options = ("--model", "--vision", "--text", "--language")
    named = {word[2:]: words[i + 1] for i, word in enumerate(words) if word in options}
    recipe = recipe_named(words[1])
    named |= dict.fromkeys(recipe.needs, recipe.size or "m") if "--dry-run" in words else {}
    config = recipe.config(("captions.jsonl",), **named)
    for i, word in enumerate(words):
        if word == "--set":
            assert override(config, [words[i + 1]]) != config, "a setting that holds anyway"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for code in re.findall(r"`openblip ([a-z][^`]*)`", " ".join(text.split())):
        words = shlex.split(code)
        name = "-".join(words[:2]) if "-".join(words[:2]) in COMMANDS else words[0]
        assert name in COMMANDS, code
        if name == "train" and words[1].islower():
            assert words[1] in RECIPES, code


def test_the_recipes_are_listed() -> None:
    page = (REPO / "docs" / "training.md").read_text(encoding="utf-8")
    table = page[page.index("| recipe | trains |") : page.index("```\nopenblip train blip-caption")]
    assert set(re.findall(r"`((?:blip|small)[\w-]*)`", table)) == set(RECIPES) - set(RUNS)
    assert runs_table() in (REPO / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_the_source_tree_is_there(page: Path) -> None:
    (tree,) = re.findall(
        r"^```text\n(src/openblip/\n.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M
    )
    first, *rest = tree.splitlines()
    named = {line.split()[0].rstrip("/") for line in rest if line.startswith("    ")}
    there = {p.name for p in (REPO / first).iterdir() if not p.name.startswith("_") and p.name != "py.typed"}
    assert named == there
    assert all((REPO / folder).is_dir() for folder in rest[-1].split())


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small models, images, questions and captions under the names that the pages use."""
    folder = tmp_path_factory.mktemp("commands")
    torch.manual_seed(0)
    tokenizer = TextTokenizer.train([*TEXTS, "a picture of a dog"] * 3, vocab_size=100)  # a captioner's prompt too
    vision = VisionConfig(image_size=32, width=64, depth=2, num_heads=1)  # heads of 64, as other formats have them
    size = {"width": 64, "depth": 2, "num_heads": 1, "inner_width": 128, "memory_width": 64}
    sizes = BlipConfig(vision=vision, text=TextConfig(vocab_size=tokenizer.vocab_size, **size))
    for name in ("runs/first/model", "runs/blip/model", "runs/matcher/model", "matcher/model", "MODEL", "F"):
        save_model(folder / name, StoredModel(Blip(sizes), tokenizer))
    for name in ("runs/captioner/model", "captioner/model", "C"):
        save_model(folder / name, StoredModel(Blip(replace(sizes, encoder=False)), tokenizer))
    for name in ("VQA", "runs/vqa/model", "runs/vqa/best"):
        save_model(folder / name, StoredModel(BlipVqa(VqaConfig(vision=sizes.vision, text=sizes.text)), tokenizer))
    for name in ("photos", "photos/images", "new", "web"):
        (folder / name).mkdir()
        for number in range(1, 9):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            for ending in (".png", ".jpg") if number == 1 else (".png",):
                Image.fromarray(pixels).save(folder / name / f"000{number}{ending}")
            (folder / name / f"000{number}.txt").write_text(TEXTS[number % 3] + "\n")
    captions = "".join(f'{{"image": "photos/000{n}.png", "caption": "{TEXTS[n % 3]}"}}\n' for n in range(1, 9))
    for name in ("captions.jsonl", "human.jsonl", "coco.jsonl", "pairs.jsonl"):
        (folder / name).write_text(captions)
    for name in ("questions.jsonl", "test.jsonl"):
        (folder / name).write_text("".join(QUESTION.format(n) for n in range(1, 9)))
    for name in ("answers.txt", "runs/vqa/answers.txt"):
        (folder / name).write_text("yes\nno\n")
    (folder / "classes.txt").write_text("images\tdog\ncat\n")
    (folder / "dataset_coco.json").write_text(
        '{"images": [{"filename": "0002.png", "split": "test", "sentences": [{"raw": "two dogs"}]}]}'
    )
    shutil.copytree(folder / "photos", folder / "coco")
    shutil.copytree(folder / "photos", folder / "tars")
    return folder


@pytest.fixture
def place(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stand-ins, as the working directory."""
    shutil.copytree(stand_ins, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "here"


def runs(words: list[str]) -> bool:
    return not any(mark in " ".join([*words, ""]) for mark in ELSEWHERE)


def run(words: list[str], place: Path) -> None:
    words = [STAND_INS.get(word, word) for word in words]
    for i, word in enumerate(words):
        if word == "--out":
            remove_quietly(place / words[i + 1])
    if words[0] == "convert":
        shutil.rmtree(place / words[2], ignore_errors=True)
    assert main(words) == 0


USED = [c for c in EVERY if runs(words_of(c)) and kind_of(words_of(c)) in USE]


@pytest.mark.parametrize("command", USED)
def test_what_uses_a_model_runs(command: str, place: Path) -> None:
    words = words_of(command)
    if words[0] == "report" and words[1] == "results/":
        assert main(["evaluate", "photos/", "--model", "runs/first/model", "--out", words[1]]) == 0
    elif words[0] == "report":
        shutil.rmtree(words[1])
        assert main(["train", "small-pretrain", "photos/", "--out", words[1], *SHORT]) == 0
    run(words, place)


@pytest.mark.parametrize("command", [c for c in EVERY if kind_of(words_of(c)) in INDEX and runs(words_of(c))])
def test_what_an_index_does_runs(
    command: str, place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = "postgresql://me@db.example.org/shop"
    words = words_of(command)
    if shop in command:
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        words = [word.replace(shop, request.getfixturevalue("postgres")) for word in words]
    folder = words[words.index("--index" if "--index" in words else "--out") + 1]
    if "--index" in words:
        assert main(["index", "build", "photos/", "--model", "MODEL", "--out", folder]) == 0
    assert main(words) == 0


SHORT = ["--steps", "2", "--set", "train.precision=float32", "--set", "batch_size=4", "--set", "num_workers=0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in EVERY if runs(words_of(c)) and kind_of(words_of(c)) in WRITE - {"capfilt-decide"}]
)
def test_what_writes_data_runs(command: str, place: Path) -> None:
    run(words_of(command.replace("--workers 4", "--workers 2")), place)
    if " capfilt " in command and " clean/ " in command and not {"--shard", "--dry-run"} & set(command.split()):
        for decide in (c for c in EVERY if kind_of(words_of(c)) == "capfilt-decide"):
            assert main(words_of(decide)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in EVERY if kind_of(words_of(c)) in TRAIN and runs(words_of(c))])
def test_what_trains_runs(command: str, place: Path) -> None:
    """Two steps of each, from a new folder."""
    shutil.copy("questions.jsonl" if "vqa" in command else "captions.jsonl", "val.jsonl")
    shutil.copytree("photos", "clean")
    if "my-tokenizer" in command:
        assert main(["tokenizer", "captions.jsonl", "--out", "my-tokenizer"]) == 0
    words = words_of(command.replace("{00000..00099}.tar", "").replace("n=2000", "n=40").replace(" --resume", ""))
    run([*words, *SHORT], place)
    assert (place / words[words.index("--out") + 1] / "model" / "config.json").is_file()
