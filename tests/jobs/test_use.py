"""The commands that use a model, and the Python API beside them: the same numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from job_commands import CommandServer
from job_world import World

from openblip import load
from openblip.generation.config import DecodeConfig
from openblip.tasks.predictor import Predictor

pytestmark = pytest.mark.slow

EXACT = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return load(str(model), device="cpu", dtype="float32")


def test_captions_by_beam_search(openblip: CommandServer, world: World, model: Path, predictor: Predictor) -> None:
    done = openblip("caption", world.folder / "images", "--model", model, *EXACT)
    assert [record["image"] for record in done.records] == world.images
    ours = predictor.caption(world.images)
    for record, (expected,) in zip(done.records, ours, strict=True):
        (caption,) = record["captions"]
        assert caption["text"] == expected.text
        assert caption["log_prob"] == pytest.approx(expected.log_prob, abs=1e-3)
        assert 5 <= expected.num_tokens <= 20


def test_captions_by_nucleus_sampling(
    openblip: CommandServer, world: World, model: Path, predictor: Predictor
) -> None:
    def written(*more: object) -> list[list[str]]:
        arguments = ("--nucleus", 0.9, "--num-captions", 2, "--model", model, *EXACT, *more)
        records = openblip("caption", *world.images[:5], *arguments).records
        return [[caption["text"] for caption in record["captions"]] for record in records]

    first = written()
    assert all(len(texts) == 2 for texts in first)
    assert written("--batch-size", 2) == first, "an image's samples do not depend on its batch"
    assert written("--seed", 1) != first
    config = DecodeConfig(sample=True, top_p=0.9, num_sequences=2, min_new_tokens=5, max_new_tokens=20)
    assert [[c.text for c in texts] for texts in predictor.caption(world.images[:5], config)] == first


def test_a_captioners_prompt_is_its_own(openblip: CommandServer, world: World, captioner: Path) -> None:
    image = world.images[0]
    own = openblip("caption", image, "--model", captioner, *EXACT).records
    given = openblip("caption", image, "--model", captioner, "--prompt", "a picture of ", *EXACT).records
    none = openblip("caption", image, "--model", captioner, "--prompt", "", *EXACT).records
    assert own == given
    assert none[0]["captions"][0]["log_prob"] != own[0]["captions"][0]["log_prob"]


def test_matching(openblip: CommandServer, world: World, model: Path, predictor: Predictor) -> None:
    texts = ["a Red circle!", "two birds"]
    done = openblip("match", *world.images[:3], "--model", model, "--text", texts[0], "--text", texts[1], *EXACT)
    for record, expected in zip(done.records, predictor.match(world.images[:3], texts), strict=True):
        for found, match in zip(record["matches"], expected, strict=True):
            assert found["text"] == match.text
            assert found["itm"] == pytest.approx(match.itm_probability, abs=1e-5)
            assert found["itc"] == pytest.approx(match.itc_similarity, abs=1e-5)
            assert 0 <= found["itm"] <= 1


def test_searching_images(openblip: CommandServer, world: World, model: Path, predictor: Predictor) -> None:
    done = openblip("retrieve", "a red circle", world.folder / "images", "--model", model, "--rerank", 10, *EXACT)
    expected = predictor.retrieve_images(world.images, ["a red circle"], top=5, rerank_k=10)[0]
    assert [record["rank"] for record in done.records] == [1, 2, 3, 4, 5]
    assert [record["item"] for record in done.records] == [found.item for found in expected]
    assert [record["itm"] for record in done.records] == pytest.approx(
        [f.itm_probability for f in expected], abs=1e-5
    )
    assert [record["score"] for record in done.records] == pytest.approx([f.score for f in expected], abs=1e-5)
    numbers = [record[name] for record in done.records for name in ("score", "itc", "itm")]
    assert numbers == [round(number, 6) for number in numbers]
    plain = openblip("retrieve", "a red circle", world.folder / "images", "--model", model, "--rerank", 0, *EXACT)
    similar = [record["itc"] for record in plain.records]
    assert similar == sorted(similar, reverse=True)
    assert all(record["itm"] is None for record in plain.records)
    assert [record["score"] for record in plain.records] == similar


def test_searching_texts(
    openblip: CommandServer, world: World, model: Path, predictor: Predictor, tmp_path: Path
) -> None:
    texts = sorted(set(world.texts))
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    arguments = ("--texts", tmp_path / "texts.txt", "--model", model, "--top", 3, *EXACT)
    done = openblip("retrieve", world.images[0], *arguments)
    expected = predictor.retrieve_texts(world.images[0], texts, top=3)
    assert [record["item"] for record in done.records] == [found.item for found in expected]
    assert [record["itc"] for record in done.records] == pytest.approx(
        [f.itc_similarity for f in expected], abs=1e-5
    )


def test_on_a_terminal_people_read_lines(openblip: CommandServer, world: World, model: Path) -> None:
    modules = ("use", "results")
    terminal = {"before": "".join(f"import openblip.cli.{m} as m; m.person = lambda: True\n" for m in modules)}
    image = world.images[0]
    assert openblip("caption", image, "--model", model, **terminal).out.startswith(f"{image}: ")
    matched = openblip("match", image, "--model", model, "--text", "a red circle", **terminal).out.splitlines()
    assert matched[0] == image
    assert matched[1].endswith("a red circle")
    assert "%" in matched[1]
    found = openblip("retrieve", "a red circle", *world.images[:3], "--model", model, **terminal).out.splitlines()
    assert [line.split(".")[0].strip() for line in found] == ["1", "2", "3"]
    assert re.search(r"   score [+-]\d+\.\d{3}  ITC [+-]0\.\d{3}  ITM +\d+\.\d%$", found[0])
    measured = openblip("evaluate", world.folder, "--model", model, "--samples", 4, **terminal).out
    assert "t2i_recall@1" in measured
