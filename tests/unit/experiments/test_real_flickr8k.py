"""Experiments on Flickr8k: questions by rule, and the whole of each on parts and photographs made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from openblip.cli.entry import main
from openblip.core.tokenizer import TextTokenizer
from openblip.experiments.real.flickr8k import VARIANTS
from openblip.experiments.real.flickr8k_questions import CHOICES, accuracy, ask_about, guessing
from tests.unit.blip2.small_blip2 import write_language

DOGS = [
    "Two brown dogs run on the grass .",
    "Two dogs are playing with a ball .",
    "A man in a red shirt watches two dogs",
    "a man wearing a red shirt",
    "Dogs on a field",
]
BOY = [
    "A boy in a blue jacket",
    "a boy with a blue jacket",
    "A boy sits",
    "The boy has a black and white dog",
    "A kid",
]
WORDS = sorted({word for text in (*DOGS, *BOY) for word in text.lower().split()} | {"a", "photo", "of"})


def asked(*captions: list[str]) -> set[tuple[int, str, str]]:
    return {(one.row, one.text, one.answer) for one in ask_about(captions, most=1000)}


def test_counts_and_colours_are_those_that_captions_agree_on() -> None:
    found = asked(DOGS, BOY)
    assert (0, "How many dogs are there?", "two") in found
    assert (0, "What color is the shirt?", "red") in found
    assert (1, "What color is the jacket?", "blue") in found
    # Dogs: one caption names a colour, and "black and white" is not one colour.
    assert not any("color is the dog" in text for _, text, _ in found)
    # "one" is asked no more often than other numbers: one image of one boy against one of two dogs.
    assert (1, "How many boys are there?", "one") in found
    # A man: two captions alone say so.
    assert not any("men" in text for _, text, _ in found)


def test_a_number_that_captions_do_not_agree_on_is_not_asked_for() -> None:
    assert not any("How many" in text for _, text, _ in asked(["two dogs run", "two dogs", "three dogs"]))
    assert not any("How many" in text for _, text, _ in asked(["a dog", "a dog", "a dog", "some dogs"]))


def test_yes_and_no_are_equally_frequent_and_no_is_certain() -> None:
    snow = ["a dog in the snow", "snow", "a dog runs on snow"]
    sand = ["a man on the sand", "a man", "a man sits"]
    skier = ["a skier", "a skier on a slope", "a skier jumps"]
    found = [one for one in ask_about([snow, sand, skier], most=1000) if one.text == "Is there snow in the image?"]
    # Skiers stand on snow, so that image is not asked about.
    assert {(one.row, one.answer) for one in found} == {(0, "yes"), (1, "no")}
    by_answer = [one.answer for one in ask_about([snow, sand, skier] * 5, most=1000) if one.kind == "exists"]
    assert by_answer.count("yes") == by_answer.count("no") > 0


def test_the_first_known_word_of_an_answer_counts() -> None:
    questions = ask_about([DOGS, BOY], most=1000)
    right = [one.answer for one in questions]
    assert accuracy(questions, right)["all"] == 1.0
    spelled = {"two": "There are 2 of them", "red": "Red, I think", "yes": "Yes."}
    assert accuracy(questions, [spelled.get(answer, answer) for answer in right])["all"] == 1.0
    assert accuracy(questions, [""] * len(questions))["all"] == 0.0
    assert all(one.answer in CHOICES[one.kind] for one in questions)
    assert accuracy(questions, ["yes"] * len(questions))["count"] == 0.0
    assert 0.3 < guessing(questions)["all"] <= 1.0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of noise, a textbook, and tiny parts as transformers writes them."""
    root = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    for name, captions in (("flickr8k", True), ("openstax", False)):
        (root / name / "images").mkdir(parents=True)
        rows: dict[str, list[str]] = {}
        for number, split in enumerate(["train"] * 16 + ["val"] * 8 + ["test"] * 6):
            image = f"images/{number}.jpg"
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / name / image)
            row = {"image": image, "image_id": f"{number}.jpg", "split": split, "book": f"book-{number % 2}"}
            if captions:
                row = {**row, "captions": DOGS if number % 2 else BOY}
            else:
                texts = (" ".join(rng.choice(WORDS, 6)) for _ in range(2))
                row |= dict(zip(("caption", "web_text"), texts, strict=True))
            rows.setdefault(split if captions else "captions", []).append(json.dumps(row) + "\n")
        for stem, lines in rows.items():
            (root / name / f"{stem}.jsonl").write_text("".join(lines))
    torch.manual_seed(0)
    transformers.Dinov2Model(
        transformers.Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
        )
    ).save_pretrained(root / "parts" / "dinov2-small")
    pieces = TextTokenizer.train([*DOGS, *BOY] * 3, vocab_size=120)._tokenizer.get_vocab()
    names = [piece for piece in sorted(pieces, key=pieces.__getitem__) if piece not in ("[DEC]", "[ENC]")]
    bert = root / "parts" / "minilm-l6"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(names) + "\n")
    transformers.BertTokenizer(str(bert / "vocab.txt")).save_pretrained(bert)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(names), **sizes)).save_pretrained(bert)
    write_language(root / "parts" / "gemma-3-270m", "llama")
    return root


@pytest.mark.slow
def test_the_experiments_run_share_their_models_and_resume(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ran(name: str) -> dict[str, dict[str, dict[str, list[float | None]]]]:
        command = ["experiments", name, "--data", str(data), "--out", str(tmp_path), "--quick", "--seeds", "1"]
        assert main(command) == 0, capsys.readouterr().err
        found: dict[str, dict[str, dict[str, list[float | None]]]] = json.loads(capsys.readouterr().out)
        return found

    mean = ran("flickr8k")
    assert set(mean) == {"stage 1", "stage 2", "answers"}
    assert {"t2i_recall@10", "i2t_recall_itm@1", "itm_auc", "itg_perplexity"} <= set(mean["stage 1"]["stage 1"])
    assert set(mean["stage 2"]) == {"stage 1 before it", "without stage 1"}
    assert {"CIDEr", "BLEU-4", "CIDEr_wrong", "distinct"} <= set(mean["stage 2"]["without stage 1"])
    answers = mean["answers"]
    assert {"guessing", "language model alone", "BLIP-2, another image", "BLIP-2, without stage 1"} <= set(answers)
    assert all(0 <= row["ranked_all"][0] <= 1 for row in answers.values() if row["ranked_all"][0] is not None)
    result = json.loads((tmp_path / "results.json").read_text())
    assert str(data) not in json.dumps(result), "a result names no folder of the machine"
    assert [len(result["curves"][0][name]["CIDEr"]) for name in mean["stage 2"]] == [2, 2] or result["curves"]
    trained = (tmp_path / "seed-0" / "stage1" / "model" / "model.safetensors").stat().st_mtime_ns

    blip = ran("flickr8k-blip")
    assert set(blip["models"]) == {"BLIP", "BLIP-2"}
    assert {"CIDEr", "t2i_recall_itm@1"} <= set(blip["models"]["BLIP"]) & set(blip["models"]["BLIP-2"])
    assert blip["cost"]["BLIP"]["trained_parameters"][0] > 0
    assert all(row["minutes"][0] > 0 for row in blip["cost"].values())
    assert (tmp_path / "seed-0" / "stage1" / "model" / "model.safetensors").stat().st_mtime_ns == trained

    capfilt = ran("flickr8k-capfilt")
    assert {"auc_other", "own_over_book caption", "kept_book caption_paper"} <= set(capfilt["filter"]["filter"])
    assert list(capfilt["gain"]) == ["before", "books' captions as they are", "the same through CapFilt"]
    assert set(ran("flickr8k-variants")["variants"]) == set(VARIANTS)


def test_a_part_that_is_not_there_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["experiments", "flickr8k", "--data", str(data), "--out", str(tmp_path), "--quick", "--seeds", "1"]
    assert main([*command, "--set", "vision=dinov3"]) == 2
    assert "there is no pretrained part" in capsys.readouterr().err
