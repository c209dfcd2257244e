"""Captions, the parser and the judge: every caption is true, and the judge agrees with brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from openblip.core.errors import UserError
from openblip.data.world.language import caption, plan, realise
from openblip.data.world.noise import NOISE_KINDS, NoiseConfig, advertising, spoil, web_text
from openblip.data.world.object import Object
from openblip.data.world.parser import UngrammaticalText, parse, parse_phrase
from openblip.data.world.scene import HELD_OUT, Scene, random_stream, sample_scene
from openblip.data.world.truth import caption_report, evaluate, is_true, judge, retrieval_ceiling
from openblip.data.world.words import NOUNS, Phrase, Relation, Statement, tokenize, vocabulary


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(4, "train", i) for i in range(400)]


@pytest.fixture(scope="module")
def table() -> Scene:
    """A large plain red circle top left with a small dotted blue star inside; two small green squares on the
    right, the lower one striped; on sand."""
    return Scene(
        (
            Object("circle", "red", "plain", "large", 0.3, 0.3, 0.24, 0.0, 0),
            Object("star", "blue", "dotted", "small", 0.31, 0.3, 0.09, 0.0, 1),
            Object("square", "green", "plain", "small", 0.75, 0.3, 0.12, 0.0, 2),
            Object("square", "green", "striped", "small", 0.75, 0.7, 0.12, 0.0, 3),
        ),
        "sand",
    )


TRUE = (
    "a red circle",
    "A big red circle.",
    "the circle",
    "an object",
    "there is a little spotted blue star inside a red circle",
    "a circle with a star inside it",
    "a plain red circle containing a star with dots",
    "a red circle to the left of a green square",
    "a red circle is left of a green square and on the left of another square",
    "two green squares",
    "2 squares on the right on sand",
    "on the sand, two small squares",
    "four objects",
    "three small objects and a large circle",
    "a green square above a striped square",
    "a square over a square that is below a star",
    "a star, a circle and a square with stripes at the bottom right",
    "a star , a circle , and a square .",
    "there are no hearts",
    "no heart and one star",
    "two squares to the right of a star",
    "a picture of a star in a circle and left of a square",
    "the picture shows one circle in the top left corner",
)

FALSE = {
    "a blue circle": ("colour",),
    "a red square": ("colour",),
    "a large star": ("size",),
    "a striped circle": ("texture",),
    "a green square to the left of a circle": ("relation",),
    "a star above a circle": ("relation",),
    "a circle inside a star": ("relation",),
    "a star in front of a circle": ("relation",),
    "three green squares": ("count",),
    "one square": ("count",),
    "two circles": ("count",),
    "no star": ("count",),
    "a red circle on water": ("ground",),
    "a circle on the right": ("place",),
    "two circles and a heart on water": ("ground", "count", "shape"),
    "a star, a star and a circle": ("shape",),
    "a circle, a star, a square, a square and a square": ("object",),
}

UNGRAMMATICAL = (
    "",
    "a",
    "red circle",
    "a red",
    "a red blue circle",
    "a circles",
    "two circle",
    "a circle a square",
    "a circle left a square",
    "a circle to the left of",
    "a circle and",
    "a circle above above a square",
    "a circle above a square below a star",
    "a dog",
    "a red circle on sand on sand",
    "circles",
    "a striped circle with stripes",
    "no circle above a square",
    "a circle with a star",
    "a circle is",
    "a circle ##s",
    "five circles",
    ", ".join(["a circle"] * 9),
    "the the the the",
)


def test_judge_by_hand(table: Scene) -> None:
    for text in TRUE:
        verdict = judge(text, table)
        assert verdict.true, (text, verdict)
        assert verdict.num_true == verdict.num_facts > 0
        assert not verdict.reason
    for text, kinds in FALSE.items():
        verdict = judge(text, table)
        assert verdict.parsed, (text, verdict)
        assert not verdict.true, text
        assert verdict.num_true == verdict.num_facts - len(verdict.false_facts)
        assert len(verdict.false_facts) >= len(kinds)
        if len(kinds) == 1:
            assert verdict.false_facts[0] == kinds[0], (text, verdict)
        assert verdict.reason
    for text in UNGRAMMATICAL:
        verdict = judge(text, table)
        assert not verdict.parsed, text
        assert not verdict.true
        assert verdict.num_facts == 0


def test_facts_and_coverage_are_counted(table: Scene) -> None:
    verdict = judge("a small red circle above two green squares on sand", table)
    # Wrong: the size, and that the circle is above both. Right: red, circle, green, squares, two, sand.
    assert (verdict.num_facts, verdict.num_true) == (8, 6)
    assert set(verdict.false_facts) == {"size", "relation"}
    assert verdict.coverage == 0.5
    assert judge("a red circle", table).coverage == 0.25
    assert judge("four objects", table).coverage == 1.0
    assert judge("a red star", table).coverage == 0.0


def test_captions_are_true_and_read_back(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    for scene in scenes:
        for length in ("mixed", "short", "long"):
            statement = plan(scene, rng, length=length)
            text = realise(statement, rng)
            assert parse(text) == statement, text
            assert evaluate(statement, scene).true, (text, scene)
            assert is_true(statement, scene)
        assert judge(text, scene).coverage == 1.0, "a long caption names every object"


def test_captions_of_other_scenes_are_usually_false(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(1)
    captions = [caption(scene, rng) for scene in scenes]
    report = caption_report(captions, scenes)
    assert report["truth"] == report["parsed"] == report["fact_accuracy"] == 1.0
    assert report["chance"] < 0.1
    assert report["failures"] == {}
    rolled = caption_report(captions, scenes[1:] + scenes[:1])
    assert rolled["truth"] == report["chance"]
    assert set(rolled["failures"]) >= {"shape", "colour", "texture", "ground", "relation"}


def test_captions_are_varied_and_use_every_word(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(2)
    captions = [caption(scene, rng) for scene in scenes for _ in range(8)]
    used = {word for text in captions for word in tokenize(text)}
    # The rest is understood, but written by others: "another", "the ..." of questions, "a photo of" of prompts.
    known = set(vocabulary())
    assert used <= known | {","}
    prompts = {"photo", "picture", "image", "of", "shows", "this", "these", "the", "another", "no", "one", "it"}
    plurals = {forms[1] for forms in NOUNS.values()}
    assert known - used <= prompts | plurals
    assert len(plurals & used) > 5
    assert 80 <= len(known) <= 150
    words = [len(tokenize(text)) for text in captions]
    assert min(words) <= 3
    assert max(words) >= 22
    assert len(set(captions)) > 0.7 * len(captions)


def test_novel_captions_name_the_new_combination() -> None:
    for index in range(60):
        scene = sample_scene(0, "novel", index)
        statement = plan(scene, random_stream(0, "novel", index, "captions"))
        assert any((phrase.shape, phrase.colour) in HELD_OUT for phrase in statement.phrases)


# The judge against brute force: another way of deciding, written from the definition alone.

EDGES = {
    "left": lambda a, b: b.x - a.x >= 0.12,
    "right": lambda a, b: a.x - b.x >= 0.12,
    "above": lambda a, b: b.y - a.y >= 0.12,
    "below": lambda a, b: a.y - b.y >= 0.12,
}


def brute_force(statement: Statement, scene: Scene) -> bool:
    def fits(phrase: Phrase, item: Object) -> bool:
        names = ("shape", "colour", "texture", "size")
        return all(getattr(phrase, name) in (None, getattr(item, name)) for name in names)

    if statement.ground is not None and statement.ground != scene.ground:
        return False
    slots = [number for number, phrase in enumerate(statement.phrases) for _ in range(phrase.num_objects)]
    for phrase in statement.phrases:
        if phrase.count is not None and sum(fits(phrase, item) for item in scene.objects) != phrase.count:
            return False
    for chosen in permutations(scene.objects, len(slots)):
        pairs = list(zip(slots, chosen, strict=True))
        if all(fits(statement.phrases[number], item) for number, item in pairs) and all(
            EDGES[relation.kind](a, b)
            for relation in statement.relations
            for i, a in pairs
            for j, b in pairs
            if i == relation.first and j == relation.second
        ):
            return True
    return False


def test_judge_agrees_with_brute_force(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(3)
    decided = {True: 0, False: 0}
    for scene in scenes:
        for _ in range(4):
            # Statements near the truth: an own one, with one fact changed or exchanged between its phrases.
            statement = plan(scene, rng, length="mixed" if rng.random() < 0.5 else "long")
            phrases = tuple(replace(phrase, places=()) for phrase in statement.phrases)
            relations = tuple(relation for relation in statement.relations if relation.kind in EDGES)
            roll = rng.random()
            if roll < 0.4 and len(phrases) > 1:
                name = ("shape", "colour", "texture", "size")[int(rng.integers(4))]
                a, b = phrases[0], phrases[1]
                first, second = replace(a, **{name: getattr(b, name)}), replace(b, **{name: getattr(a, name)})
                phrases = (first, second, *phrases[2:])
            elif roll < 0.7:
                kinds = list(EDGES)
                relations = tuple(replace(r, kind=kinds[int(rng.integers(4))]) for r in relations)
            elif roll < 0.8:
                phrases = (replace(phrases[0], count=int(rng.integers(1, 5))), *phrases[1:])
            changed = Statement(phrases, relations, statement.ground)
            expected = brute_force(changed, scene)
            assert evaluate(changed, scene).true == is_true(changed, scene) == expected, (changed, scene)
            if not expected:
                verdict = evaluate(changed, scene)
                assert 0 < len(verdict.false_facts) == verdict.num_facts - verdict.num_true
            decided[expected] += 1
    assert min(decided.values()) > 300, decided


# Web texts


def test_spoiled_captions_are_false_grammatical_and_near(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(4)
    for scene in scenes:
        statement = plan(scene, rng)
        changed = spoil(statement, scene, rng)
        text = realise(changed, rng)
        verdict = judge(text, scene)
        assert verdict.parsed, text
        assert not verdict.true
        assert parse(text) == changed
        if len(changed.phrases) > 1 and not statement.relations and changed.phrases[0].count is None:
            assert verdict.num_true >= verdict.num_facts - 3, "one changed fact"
        assert not any((phrase.shape, phrase.colour) in HELD_OUT for phrase in changed.phrases)


def test_web_texts_have_the_kinds_and_rates_asked_for(scenes: list[Scene]) -> None:
    config = NoiseConfig(other_image=0.2, half_true=0.1, advertising=0.3)
    counts = dict.fromkeys(NOISE_KINDS, 0)
    num = 0
    for i in range(1200):
        scene, rng = scenes[i % 400], random_stream(0, "train", i, "web")
        text, kind = web_text(scene, rng, config, other=lambda i=i: scenes[(i * 7 + 1) % 400])
        verdict = judge(text, scene)
        assert verdict.true == (kind == "clean"), (text, kind)
        assert verdict.parsed == (kind != "advertising"), text
        counts[kind] += 1
        num += 1
    assert config.rate == pytest.approx(0.6)
    for kind, rate in zip(NOISE_KINDS, (0.4, 0.2, 0.1, 0.3), strict=True):
        assert counts[kind] / num == pytest.approx(rate, abs=0.05)
    with pytest.raises(UserError, match="more than 1"):
        NoiseConfig(half_true=0.9)


def test_advertising_never_parses() -> None:
    rng = np.random.default_rng(5)
    for _ in range(500):
        with pytest.raises(UngrammaticalText):
            parse(advertising(rng))


# Small things


def test_phrases_are_read_with_and_without_determiner() -> None:
    assert parse_phrase("big red star") == Phrase("star", "red", None, "large")
    assert parse_phrase("the star with stripes") == Phrase("star", texture="striped")
    assert parse_phrase("two stars at the top") == Phrase("star", count=2, places=("top",))
    with pytest.raises(UngrammaticalText, match="noun"):
        parse_phrase("red")


def test_relations_attach_as_the_grammar_says() -> None:
    relations = parse("a star above a moon and left of a ring and a heart that is below a cross").relations
    assert relations == (Relation(0, "above", 1), Relation(0, "left", 2), Relation(3, "below", 4))
    assert parse("a star above a moon which is left of a ring").relations[1] == Relation(1, "left", 2)
    assert parse("a star on the left of a moon on the left").phrases[1].places == ("left",)


def test_the_end_of_grammar_is_named() -> None:
    with pytest.raises(UngrammaticalText, match=r'noun expected, found "dog" \(word 3\)'):
        parse("a red dog")


def test_retrieval_ceiling_by_hand(table: Scene) -> None:
    other = Scene((table.objects[0],), "water")
    # "a red circle" fits both images, "a star" one; "a heart" is false of its own.
    assert retrieval_ceiling(["a star", "a red circle"], [table, other]) == 0.75
    assert retrieval_ceiling(["a star", "a red circle"], [table, other], k=2) == 1.0
    assert retrieval_ceiling(["a heart", "a red circle on water"], [table, other]) == 0.5


def test_report_counts_by_hand(table: Scene) -> None:
    report = caption_report(["a red circle", "a blue circle", "buy circles now"], [table] * 3)
    assert report["truth"] == pytest.approx(1 / 3)
    assert report["parsed"] == pytest.approx(2 / 3)
    assert report["fact_accuracy"] == pytest.approx(3 / 4)
    assert report["mean_facts"] == pytest.approx(4 / 3)
    assert report["coverage"] == pytest.approx(0.25 / 3)
    assert report["failures"] == pytest.approx({"colour": 1 / 3, "ungrammatical": 1 / 3})
    with pytest.raises(UserError, match="3 captions"):
        caption_report(["a"] * 3, [table])
    with pytest.raises(UserError, match="no captions"):
        caption_report([], [])
