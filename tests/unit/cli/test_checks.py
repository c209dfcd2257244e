"""Mistakes in the arguments are answered before torch, or any library of models, is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from openblip.cli.entry import main
from openblip.cli.index import index_duplicates
from openblip.cli.index_export import index_export
from openblip.cli.results import check_counts
from openblip.cli.train import check_train
from openblip.core.errors import UserError
from openblip.recipes.catalogue import RECIPES

HEAVY = ("torch", "torchvision", "timm", "transformers", "huggingface_hub")
SCRIPT = """
import contextlib, io, json, sys
from openblip.cli import main
for arguments in json.loads(sys.stdin.read()):
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        code = main(arguments)
    heavy = [name for name in sys.argv[1:] if name in sys.modules]
    print(json.dumps({"code": code, "said": said.getvalue(), "printed": len(printed.getvalue()), "heavy": heavy}))
"""
NO_MODEL = "there is no model at no/such/place; give a model's folder, a checkpoint file or a hub name"
AT = ("--model", "no/such/place")


def ask(*commands: list[str], heavy: Sequence[str] = HEAVY) -> list[dict[str, Any]]:
    """What one process answers to each, and which heavy libraries it has imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *heavy],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("images") / "a.png"
    path.write_bytes(b"not opened")
    return str(path)


def test_mistakes_import_nothing_heavy(image: str, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    out.write_text("kept\n")
    nothing, near = str(tmp_path / "none"), str(tmp_path / "results.jsnl")
    (tmp_path / "a-model").mkdir()
    (tmp_path / "a-model" / "config.json").write_text("{}")
    (tmp_path / "a-run" / "model").mkdir(parents=True)
    (tmp_path / "a-run" / "config.json").write_text('{"run": {}}')
    (tmp_path / "a-run" / "model" / "config.json").write_text('{"model_type": "blip"}')
    run, begun, empty, picture = (tmp_path / name for name in ("a-run", "begun", "empty", "a.jpg"))
    (begun / "checkpoints" / "step-00000005").mkdir(parents=True)
    empty.mkdir()
    picture.write_bytes(b"\xff\xd8\xff\xe0")

    model, bare = str(tmp_path / "a-model"), str(tmp_path)
    recipe = "the first argument of train is a recipe (openblip recipes lists them)"
    cases = {
        NO_MODEL: [
            ["caption", image, *AT],
            ["match", image, *AT, "--text", "a"],
            ["ask", image, *AT, "--question", "a"],
            ["embed", image, *AT],
            ["retrieve", "a", image, *AT],
            ["explain", image, *AT, "--text", "a", "--out", nothing],
            ["evaluate", image, *AT],
            ["train", "blip-caption", image, *AT, "--out", nothing],
            ["capfilt", image, nothing, "--captioner", "no/such/place", "--filter", model],
            ["capfilt", image, nothing, "--captioner", model, "--filter", "no/such/place"],
            ["info", "no/such/place"],
            ["convert", "no/such/place", nothing, "--to", "openblip"],
        ],
        "there is no model at weights.pth; give": [["caption", image, "--model", "weights.pth"]],
        "there is no model at nowhere; give": [["info", "nowhere"]],
        f"there is no image or folder {nothing}": [
            ["caption", nothing, "--model", model],
            ["explain", nothing, "--model", model, "--out", nothing],
        ],
        f"there is no file {nothing} with a text on each line": [
            ["ask", image, "--model", model, "--question", "a", "--answers", nothing],
            ["evaluate", image, "--model", model, "--answers", nothing],
            ["retrieve", image, "--model", model, "--texts", nothing],
        ],
        f"there is no file or folder {nothing}": [
            ["train", "small-pretrain", nothing, "--out", str(tmp_path / "run")],
            ["evaluate", nothing, "--model", model],
            ["train", "small-pretrain", image, "--validation", nothing, "--out", str(tmp_path / "run")],
            ["train", "small-pretrain", f"{nothing}?weight=2", "--out", str(tmp_path / "run")],
            ["capfilt", nothing, str(tmp_path / "clean"), "--captioner", model, "--filter", model],
        ],
        f'there is no file or folder {near} (did you mean "results.jsonl"?)': [
            ["train", "small-pretrain", f"{near}?weight=2", "--out", str(tmp_path / "run")]
        ],
        f'{image}?wieght=2: unknown setting "wieght" (did you mean "weight"?)': [
            ["train", "small-pretrain", f"{image}?wieght=2", "--out", str(tmp_path / "run")]
        ],
        **{
            f"{recipe}, which {data} is not": [["train", data, "--out", nothing]]
            for data in (image, bare, "world:train", "world:train?n=24", "captions.tar", "hf:someone/data")
        },
        f"{recipe}, which {run} is not; the settings of a run are a file: {run / 'config.json'}": [
            ["train", str(run), "--out", nothing]
        ],
        f"{run / 'model' / 'config.json'} describes a model, where the settings of a run are needed; "
        f"did you mean {run / 'config.json'}?": [["train", str(run / "model" / "config.json"), "--out", nothing]],
        "the recipe blip-caption has no option --vision; it takes --model, --validation, --steps": [
            ["train", "blip-caption", image, "--model", model, "--vision", "timm:x", "--out", nothing]
        ],
        "the recipe small-stage1 has no option --language; it takes --model, --validation, --steps, --vision": [
            ["train", "small-stage1", image, "--language", "x", "--out", nothing]
        ],
        'there is no recipe "blip-captoin" (did you mean "blip-caption"?)': [
            ["train", "blip-captoin", image, "--out", nothing],
            ["train", "blip-captoin", "--help"],
        ],
        'there is no recipe "blip2-vqa-opt-6.8b" (did you mean "blip2-vqa-opt-6.7b"?)': [
            ["train", "blip2-vqa-opt-6.8b", image, "--out", nothing]
        ],
        'there is no recipe "zzz"; openblip recipes lists them': [["train", "zzz", image, "--out", nothing]],
        "coco is a published dataset; name a split of it, as in coco:test": [
            ["evaluate", "coco", "--model", model]
        ],
        'there is no measure "itn" (did you mean "itm"?)': [["score", image, "--model", model, "--by", "itn"]],
        "--prompt is for likelihood, which is not computed here (itm, itc); leave it out": [
            ["score", image, "--model", model, "--by", "itm,itc", "--prompt", "a"]
        ],
        "--answer is for vqa, which is not computed here (likelihood); leave it out": [
            ["score", image, "--model", model, "--by", "likelihood", "--answer", "no"]
        ],
        "--rerank must be at least 0, not -1": [
            ["retrieve", "a", image, "--model", model, "--rerank", "-1"],
            ["evaluate", "world:test", "--model", model, "--rerank", "-1"],
        ],
        f"the folder {out} cannot be made: {out} is a file; choose another": [
            ["train", "small-pretrain", image, "--out", str(out)],
            ["demo", "--out", str(out)],
            ["cache-features", image, "--vision", "timm:x", "--out", str(out)],
        ],
        f"{begun} already holds a run (up to step 5); continue with --resume, or choose another folder": [
            ["train", "small-pretrain", image, "--out", str(begun)]
        ],
        'unknown setting "nosuch"': [["train", "small-pretrain", image, "--out", nothing, "--set", "nosuch=1"]],
        "learning_rate must be above 0, not -1.0": [
            ["train", "small-pretrain", image, "--out", nothing, "--set", "train.learning_rate=-1"]
        ],
        "a vision tower comes from timm:NAME, hf:NAME or openblip:FOLDER": [
            ["train", "blip2-stage1", image, "--vision", "kind:x", "--out", nothing],
            ["cache-features", image, "--vision", "x", "--out", nothing],
        ],
        f"{empty} holds no images, tars or captions files": [
            ["train", "small-pretrain", str(empty), "--out", nothing]
        ],
        f"there is no image in {empty}": [["caption", str(empty), "--model", model]],
        f'{picture} is of no known kind (".jpg": it is a JPEG image); give a folder, or a file that ends in': [
            ["train", "small-pretrain", str(picture), "--out", nothing]
        ],
        f"{picture} is no checkpoint: it is a JPEG image": [
            ["caption", image, "--model", str(picture)],
            ["info", str(picture)],
        ],
        "--steps must be at least 1, not -5": [
            ["train", "small-pretrain", image, "--out", nothing, "--steps", "-5"]
        ],
        "--beams must be at least 1, not 0": [["caption", image, "--model", model, "--beams", "0"]],
        "--batch-size must be at least 1, not 0": [
            ["caption", image, "--model", model, "--batch-size", "0"],
            ["cache-features", image, "--vision", "timm:x", "--out", nothing, "--batch-size", "0"],
        ],
        "--port is a number from 0 to 65535, not 99999": [["serve", model, "--port", "99999"]],
        '--stage cannot be "nosuch"': [["demo", "--stage", "nosuch"]],
        "--seed must be at least 0, not -1": [["demo", "--seed", "-1"]],
        **{
            f"the demo needs at least a minute, and a number of them, not {minutes}": [
                ["demo", "--minutes", minutes]
            ]
            for minutes in ("nan", "inf", "0")
        },
        f"{out} exists already; choose a new file": [["caption", image, "--model", model, "--out", str(out)]],
        'openblip caption has no option "--beam" (did you mean "--beams"?)': [
            ["caption", image, "--model", model, "--beam", "3"]
        ],
        f"{bare} is no model folder: it has no config.json": [["caption", image, "--model", bare]],
        f"{run} is the folder of a run; did you mean {run / 'model'}?": [["caption", image, "--model", str(run)]],
        "name the images: files, folders": [["caption", "--model", model], ["match", "--model", model]],
        'name at least one text: --text "a red bus"': [["match", image, "--model", model]],
        'unknown device "gpu"': [["caption", image, "--model", model, "--device", "gpu"]],
        f"there is no configuration file {nothing}": [["bootstrap", "--out", nothing, "--config", nothing]],
        f"{model} exists already; choose a new place": [["convert", model, model, "--to", "openblip"]],
        'unknown command "captoin" (did you mean "caption"?)': [["captoin"]],
        'unknown command "index buld" (did you mean "build"?)': [["index", "buld", "photos/"]],
        'there is no recipe "smal" (did you mean "small-pretrain", "small-caption", ': [["recipes", "smal"]],
        "openblip caption needs --model": [["caption", image]],
    }
    wanted = [(sentence, command) for sentence, commands in cases.items() for command in commands]
    answers = ask(*(command for _, command in wanted))
    for (sentence, command), answer in zip(wanted, answers, strict=True):
        assert answer["code"] == 2, (command, answer)
        assert answer["said"].startswith(f"openblip: {sentence}"), (command, answer)
        assert answer["heavy"] == [], command
    assert out.read_text() == "kept\n"


def test_help_imports_nothing_heavy() -> None:
    commands = (["--help"], ["caption", "--help"], ["train", "--help"], ["--version"])
    for answer in ask(*commands, heavy=(*HEAVY, "numpy", "PIL")):
        assert answer == {**answer, "code": 0, "said": "", "heavy": []}
        assert answer["printed"] > 10


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("caption", ["-", "*.nothing", "--model", "Salesforce/blip-itm-base-coco"]),
        ("train", ["hf:name/set", "world:train?n=4", "s3://bucket/a", "a/{0..3}.tar", "b/*.parquet"]),
    ],
)
def test_what_cannot_be_told_by_its_name_is_left_to_the_command(command: str, arguments: list[str]) -> None:
    from openblip.cli.checks import check_arguments
    from openblip.cli.entry import COMMANDS

    places = [word for word in arguments if not word.startswith("--") and "Salesforce" not in word]
    options = {"model": "Salesforce/blip-itm-base-coco@main"} if "--model" in arguments else {"out": Path("run")}
    first = ("small-pretrain",) if command == "train" else ()
    check_arguments(command, COMMANDS[command], (*first, tuple(places)), options)


def test_a_bootstrap_reads_its_data_only_where_they_are_needed(tmp_path: Path) -> None:
    """A configuration file takes the place of arguments, and a loop that was begun may have its data read."""
    from openblip.cli.checks import check_arguments
    from openblip.cli.entry import COMMANDS
    from openblip.core.errors import UserError

    config = tmp_path / "bootstrap.json"
    config.write_text("{}")
    command, gone = COMMANDS["bootstrap"], (str(tmp_path / "gone"),)
    check_arguments("bootstrap", command, (), {"out": tmp_path / "new", "config": config, "web": gone})
    check_arguments("bootstrap", command, (), {"out": tmp_path, "web": gone})
    with pytest.raises(UserError, match="there is no file or folder"):
        check_arguments("bootstrap", command, (), {"out": tmp_path / "new", "web": gone})
    with pytest.raises(UserError, match="there is no configuration file"):
        check_arguments("bootstrap", command, (), {"out": tmp_path, "config": tmp_path / "none.json"})


def test_an_empty_file_of_results_is_a_new_one(tmp_path: Path) -> None:
    """As a command leaves that was stopped before its first result."""
    from openblip.cli.results import sink
    from openblip.core.errors import UserError

    out = tmp_path / "results.jsonl"
    out.touch()
    with sink(out) as write:
        write("", {"image": "a.png"})
    assert json.loads(out.read_text()) == {"image": "a.png"}
    with pytest.raises(UserError, match="exists already"), sink(out):
        pass


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_of_options_that_are_none(value: float) -> None:
    check_counts(0, cache_mb=0.5)
    with pytest.raises(UserError, match=f"--cache-mb must be at least 0, not {value}"):
        check_counts(0, cache_mb=value)


def test_a_similarity_is_a_cosine(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--similarity is a cosine from -1 to 1, not 5"):
        index_duplicates(index=tmp_path, similarity=5)


def test_every_recipe_is_taken_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names with a dot, and names that a folder of the working directory has too, are recipes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blip-caption").mkdir()
    for name in RECIPES:
        check_train(name, {"dry_run": True})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["index"], "openblip: index is followed by what it is to do: index build"),
        (["index", "--help"], "openblip: index is followed by what it is to do"),
        (["serve", "of/hub", "--engine", "ray", "--replicas", "0"], "--replicas"),
        (["serve", "of/hub", "--cors-origin", "foo"], '--cors-origin: "foo" is no site'),
        (["serve", "of/hub", "--cors-origin", "https://a.example/page"], "is no site"),
    ],
)
def test_options_that_cannot_be_meant(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    assert said in capsys.readouterr().err


def test_an_index_is_exported_as_parquet_alone() -> None:
    with pytest.raises(UserError, match=r"name a file such as x\.parquet"):
        index_export(index="here", out=Path("x.csv"))
