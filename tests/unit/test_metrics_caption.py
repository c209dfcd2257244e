"""Caption scores and words equal those of pycocoevalcap and its Java tokenizer, stored in metrics.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from openblip.core.errors import UserError
from openblip.metrics.caption import bleu, caption_scores, cider, distinct, rouge_l
from openblip.metrics.words import split_words

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
HARD = json.loads((FOLDER / "words.json").read_text(encoding="utf-8"))


def test_words_equal_those_of_the_java_tokenizer() -> None:
    assert len(GOLDEN["sentences"]) > 200
    for sentence, words in GOLDEN["sentences"]:
        assert split_words(sentence) == parted(words), sentence


def parted(words: str) -> list[str]:
    """What the Java program answered, its runs of Chinese characters and kana by characters, as ours."""
    return re.sub("[\u3040-\u30ff\u4e00-\u9fff]", r" \g<0> ", words).split()


def test_words_of_hard_strings_equal_those_of_the_java_tokenizer() -> None:
    """Quotes, hyphens, numbers, money, dates, addresses, markup, telephone numbers, emoji, other scripts."""
    assert len(HARD["sentences"]) >= 310
    wrong = {s: (split_words(s), words) for s, words in HARD["sentences"] if split_words(s) != parted(words)}
    assert not wrong


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("A man can't ride his T-shirt's \"wave\", isn't it?", "a man ca n't ride his t-shirt 's wave is n't it"),
        ("Mr. Smith (left) waits at 5:30pm.", "mr. smith -lrb- left -rrb- waits at 5:30 pm"),
        ("point b. The dog sat. No. 5 it is, no.", "point b the dog sat no. 5 it is no"),
        ("the dogs' bowl -- 1/2 full & red!!", "the dogs bowl 1/2 full & red !!"),
        ("  \n ", ""),
        ("", ""),
        ("...!", ""),
    ],
)
def test_words_as_documented(sentence: str, words: str) -> None:
    assert split_words(sentence) == words.split()


@pytest.mark.parametrize("name", GOLDEN["scores"])
def test_scores_equal_those_of_pycocoevalcap(name: str) -> None:
    expected = GOLDEN["scores"][name]
    captions = [split_words(GOLDEN["captions"][image]) for image in expected["images"]]
    references = [[split_words(text) for text in GOLDEN["references"][image]] for image in expected["images"]]
    np.testing.assert_allclose(bleu(captions, references), expected["bleu"], rtol=1e-9)
    np.testing.assert_allclose(rouge_l(captions, references), expected["rouge_each"], atol=1e-8)
    np.testing.assert_allclose(cider(captions, references), expected["cider_each"], atol=1e-8)


def test_all_scores_together() -> None:
    scores = caption_scores(GOLDEN["captions"], GOLDEN["references"])
    expected = GOLDEN["scores"]["all"]
    assert scores["BLEU-4"] == pytest.approx(expected["bleu"][3])
    assert scores["ROUGE-L"] == pytest.approx(expected["rouge"])
    assert scores["CIDEr"] == pytest.approx(expected["cider"])
    assert scores["CIDEr+BLEU-4"] == pytest.approx(expected["cider"] + expected["bleu"][3])
    assert 0 < scores["distinct-1"] < scores["distinct-2"] < 1


def test_bleu_by_hand() -> None:
    """5 of 6 words and 3 of 5 pairs occur; nearest reference length is 6 (7 is as near as 5, 5 is taken)."""
    caption = ["the", "cat", "sat", "on", "a", "mat"]
    values = bleu([caption], [[["the", "cat", "is", "on", "the", "mat", "a"], ["a", "b", "c", "d", "e"]]])
    matches = {"the", "cat", "on", "a", "mat"}
    assert values[0] == pytest.approx(len(matches) / 6)
    assert values[1] == pytest.approx((5 / 6 * 1 / 5) ** 0.5)


def test_perfect_captions_score_highest() -> None:
    references = [["a red circle above a square"], ["two dogs on wet grass today"], ["the sun sets in blue"]]
    scores = caption_scores([texts[0] for texts in references], references)
    assert scores["BLEU-4"] == pytest.approx(1.0)
    assert scores["ROUGE-L"] == pytest.approx(1.0)
    assert scores["CIDEr"] == pytest.approx(10.0)


def test_distinct_by_hand() -> None:
    assert distinct([["a", "b", "a"], ["b"]], 1) == 0.5
    assert distinct([["a", "b", "a", "b"], ["b"]], 2) == pytest.approx(2 / 3)
    assert distinct([["a"], []], 2) == 0.0


@pytest.mark.parametrize(
    ("captions", "references", "word"),
    [
        (["a"], [], "one caption each"),
        ([], [], "no captions"),
        (["a", "b"], [["a"], []], "image 1"),
        (["a"], ["a string"], "image 0"),
    ],
)
def test_what_cannot_be_scored_is_named(captions: list, references: list, word: str) -> None:
    with pytest.raises(UserError, match=word):
        caption_scores(captions, references)


def test_characters_that_no_blanks_part_are_words() -> None:
    """Else BLEU-4 of a Chinese caption is 0, and CIDEr counts whole sentences."""
    assert split_words("一只狗\uff0c在海滩上跑。") == list("一只狗在海滩上跑")
    assert split_words("犬がボールで遊ぶ「海」") == list("犬がボールで遊ぶ海")
    assert split_words("2只 dogs在跑") == ["2", "只", "dogs", "在", "跑"]
    assert split_words("개가 달린다") == ["개가", "달린다"], "Korean has blanks"
    found = caption_scores(["一只狗在海滩上跑"], [["一只狗在沙滩上跑", "一只狗在海滩上"]])
    assert found["BLEU-4"] > 0.5
