"""Questions, embeddings and maps at the command line; results in files, from tars and lists, on a full disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from job_commands import CommandServer
from job_world import World

from openblip import load
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.tokenizer import TextTokenizer
from openblip.models.vqa import BlipVqa, VqaConfig

pytestmark = pytest.mark.slow

EXACT = ("--device", "cpu", "--dtype", "float32")
QUESTIONS = ("what shape is red?", "how many circles are there?")
# A file may grow to 1,500 bytes and no further, as on a disk that is full then.
FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
"""


@pytest.fixture(scope="module")
def asker(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQA model made of the pre-trained one."""
    stored = open_model(model)
    tokenizer: TextTokenizer = stored.tokenizer
    torch.manual_seed(0)
    vqa = BlipVqa(VqaConfig(vision=stored.model.config.vision, text=stored.model.config.text))
    vqa.start_from(stored.model)
    folder = tmp_path_factory.mktemp("vqa") / "model"
    save_model(folder, StoredModel(vqa, tokenizer, {"task": "vqa"}))
    return folder


def test_asking_freely_and_among_answers(
    openblip: CommandServer, world: World, asker: Path, tmp_path: Path
) -> None:
    asked = [part for question in QUESTIONS for part in ("--question", question)]
    predictor = load(asker, device="cpu", dtype="float32")
    done = openblip("ask", *world.images[:3], "--model", asker, *asked, *EXACT)
    for record, expected in zip(done.records, predictor.answer(world.images[:3], QUESTIONS), strict=True):
        for found, one in zip(record["questions"], expected, strict=True):
            assert found["question"] == one.question
            assert [answer["text"] for answer in found["answers"]] == [one.text]
    assert done.err.startswith("openblip: 3 images done (cpu, float32, ")
    answers = ["circle", "square", "two", "one"]
    (tmp_path / "answers.txt").write_text("\n".join(answers) + "\n")
    ranked = openblip(
        *("ask", world.images[0], "--model", asker, *asked, "--answers", tmp_path / "answers.txt"),
        *("--num-answers", 4, *EXACT),
    )
    (record,) = ranked.records
    for found, one in zip(
        record["questions"], predictor.answer(world.images[0], QUESTIONS, answers)[0], strict=True
    ):
        assert [answer["text"] for answer in found["answers"]] == [answer.text for answer in one.answers]
        assert sum(answer["probability"] for answer in found["answers"]) == pytest.approx(1, abs=1e-4)
    terminal = {"before": "import openblip.cli.results as results; results.person = lambda: True"}
    lines = openblip("ask", world.images[0], "--model", asker, *asked, **terminal).out.splitlines()
    assert lines[0] == world.images[0]
    assert lines[1].startswith(f"  {QUESTIONS[0]}  ")


def test_embedding_images_and_texts(openblip: CommandServer, world: World, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "found" / "vectors.jsonl"
    arguments = ("--model", model, "--text", "a red circle", "--batch-size", 2, "--out", out, *EXACT)
    done = openblip("embed", *world.images[:3], *arguments)
    assert done.out == ""
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record.get("text") or record["image"] for record in records] == ["a red circle", *world.images[:3]]
    predictor = load(model, device="cpu", dtype="float32")
    expected = torch.cat((predictor.embed_texts("a red circle"), predictor.embed_images(world.images[:3])))
    torch.testing.assert_close(torch.tensor([r["embedding"] for r in records]), expected, rtol=1e-4, atol=1e-5)
    assert "exists already" in openblip.refuse("embed", world.images[0], "--model", model, "--out", out)
    assert len(openblip("embed", "--model", model, "--text", "a red circle", *EXACT).records) == 1
    assert "name the images" in openblip.refuse("embed", "--model", model)


def test_tars_globs_and_lists(openblip: CommandServer, world: World, model: Path, tmp_path: Path) -> None:
    tar = world.as_tar(tmp_path / "shard.tar")
    expected = [
        record["captions"] for record in openblip("caption", *world.images, "--model", model, *EXACT).records
    ]
    found = openblip("caption", tar, "--model", model, *EXACT).records
    assert [record["image"] for record in found] == [f"{tar}/{number:09d}.png" for number in range(48)]
    assert sorted(c["text"] for r in found for c in r["captions"]) == sorted(c["text"] for e in expected for c in e)
    glob = openblip("caption", f"{world.folder}/images/*.png", "--model", model, *EXACT).records
    assert [record["captions"] for record in glob] == expected
    listed = f"import sys, io; sys.stdin = io.StringIO({(world.images[1] + chr(10) + 'none.png')!r})"
    done = openblip("caption", "-", "--model", model, *EXACT, code=1, before=listed)
    assert [record["image"] for record in done.records] == [world.images[1]]
    assert "skipped none.png (missing)" in done.err
    assert "1 image done, 1 skipped" in done.err


@pytest.mark.parametrize("to_file", [True, False])
def test_a_full_disk_leaves_whole_results(
    openblip: CommandServer, world: World, model: Path, tmp_path: Path, to_file: bool
) -> None:
    out = ("--out", tmp_path / "captions.jsonl") if to_file else ()
    done = openblip("caption", *world.images, "--model", model, *out, *EXACT, code=2, before=FULL)
    text = (tmp_path / "captions.jsonl").read_text() if to_file else done.out
    records = [json.loads(line) for line in text.splitlines()]
    assert 3 < len(records) < 48
    assert text.endswith("\n")
    assert [record["image"] for record in records] == world.images[: len(records)]
    assert f"holds the first {len(records)} results; free some space" in done.sentence


def test_a_drawing_of_where_the_model_looks(
    openblip: CommandServer, world: World, model: Path, captioner: Path, tmp_path: Path
) -> None:
    image = world.images[0]
    out = tmp_path / "map.png"
    done = openblip("explain", image, "--model", model, "--text", "a red circle", "--out", out)
    (record,) = done.records
    assert (record["by"], record["text"]) == ("match", "a red circle")
    assert [word["word"] for word in record["words"]] == ["a", "red", "circle"]
    assert all(0 < part < 1 for word in record["words"] for part in word["peak"])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "exists already" in openblip.refuse("explain", image, "--model", model, "--out", out)
    written = openblip("explain", image, "--model", captioner, "--out", tmp_path / "written.png").records[0]
    assert written["by"] == "caption"
    assert " ".join(word["word"] for word in written["words"]).split()[0] == written["text"].split()[0]
    refuse = openblip.refuse
    more = ("--out", tmp_path / "none.png")
    assert "this is a BLIP captioning model" in refuse(
        "explain", image, "--model", captioner, "--text", "a red circle", "--by", "match", *more
    )
    assert "there is no layer 7" in refuse("explain", image, "--model", model, "--layer", 7, *more)
    assert "name the file" in refuse("explain", image, "--model", model, "--out", tmp_path / "none.pdf")
    assert "there is no image or folder" in refuse("explain", tmp_path / "no.png", "--model", model, *more)
    assert "pip install" in refuse(
        "explain", image, "--model", model, *more, before="import sys; sys.modules['matplotlib'] = None"
    )
    assert not (tmp_path / "none.png").exists()


def test_texts_that_the_model_cannot_read(openblip: CommandServer, world: World, model: Path) -> None:
    image = world.images[0]
    refuse = openblip.refuse
    assert "tokens, and the model takes 64; shorten it" in refuse(
        "match", image, "--model", model, "--text", "red " * 90
    )
    assert "cannot begin with" in refuse("caption", image, "--model", model, "--prompt", "картина ")
    assert "vocabulary has no word of" in refuse("match", image, "--model", model, "--text", "犬")
    assert "answers need a BLIP VQA model" in refuse("ask", image, "--model", model, "--question", "what?")
