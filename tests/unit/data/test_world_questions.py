"""Questions and statements about pairs: every answer is worked out anew from the words alone."""

from __future__ import annotations

from collections import Counter

import pytest

from openblip.core.errors import UserError
from openblip.data.world.geometry import holds, is_at
from openblip.data.world.language import matches
from openblip.data.world.object import Object
from openblip.data.world.pairs import PAIR_FORMS, PairSource, pair_is_true, sample_pair
from openblip.data.world.parser import parse, parse_phrase
from openblip.data.world.questions import ANSWERS, QUESTION_KINDS, Question, check_answer, questions
from openblip.data.world.scene import HELD_OUT, Scene, random_stream, sample_scene
from openblip.data.world.words import RELATION_WORDS, Phrase


def the(words: str, scene: Scene) -> Object:
    """The one object that a description fits."""
    found = [item for item in scene.objects if matches(parse_phrase(words), item)]
    assert len(found) == 1, (words, scene)
    return found[0]


def work_out(text: str, kind: str, scene: Scene) -> str | Object:
    """Answer a question from its words."""
    words = text.removesuffix("?")
    if kind in ("colour", "shape", "size", "texture"):
        description = words[words.index(" the ") + 1 :].removesuffix(" have")
        return str(getattr(the(description, scene), kind))
    if kind == "ground":
        return scene.ground
    if kind == "count":
        phrase = parse_phrase("two " + words.removeprefix("how many ").removesuffix(" are there"))
        number = sum(matches(phrase, item) for item in scene.objects)
        return ("zero", "one", "two", "three", "four")[number]
    if kind == "exists":
        phrase = parse_phrase(words.removeprefix("is there "))
        return "yes" if any(matches(phrase, item) for item in scene.objects) else "no"
    if kind == "place":
        phrase = parse_phrase(words.removeprefix("is "))
        description = next(
            words.split(start)[0] for start in (" on the ", " at the ", " in the ") if start in words
        )
        item = the(description.removeprefix("is "), scene)
        return "yes" if all(is_at(place, item) for place in phrase.places) else "no"
    if kind == "relation":
        statement = parse(words.removeprefix("is "))
        names = ("shape", "colour", "texture", "size")
        pair = [
            next(item for item in scene.objects if all(getattr(p, n) in (None, getattr(item, n)) for n in names))
            for p in statement.phrases
        ]
        return "yes" if holds(statement.relations[0].kind, *pair) else "no"
    assert kind == "which"
    words = words.removeprefix("what is ")
    relation = next(k for k, wordings in RELATION_WORDS.items() if words.startswith(wordings[0] + " the"))
    anchor = the(words.removeprefix(RELATION_WORDS[relation][0] + " "), scene)
    found = [item for item in scene.objects if item is not anchor and holds(relation, item, anchor)]
    assert len(found) == 1
    return found[0]


def test_every_answer_is_right() -> None:
    kinds: Counter[str] = Counter()
    answers: Counter[tuple[str, str]] = Counter()
    for index in range(400):
        scene = sample_scene(6, "train", index)
        asked = questions(scene, random_stream(6, "train", index, "questions"), 5)
        assert len({question.text for question in asked}) == len(asked) >= 3
        for question in asked:
            truth = work_out(question.text, question.kind, scene)
            if isinstance(truth, Object):
                assert question.answer == f"{truth.colour} {truth.shape}", question
                assert check_answer(question, f"a {truth.size} {truth.colour} {truth.shape}.")
                assert not check_answer(question, truth.colour)
            else:
                assert question.answer == truth, (question, scene)
                assert question.answer in ANSWERS
            assert check_answer(question, question.answer)
            assert Question.from_dict(question.to_dict()) == question
            assert not any(f" {colour} {shape}" in question.text for shape, colour in HELD_OUT)
            kinds[question.kind] += 1
            answers[question.kind, question.answer] += 1
    assert set(kinds) == set(QUESTION_KINDS)
    assert min(kinds.values()) > 0.05 * kinds.total()
    for kind in ("exists", "relation", "place"):
        assert 0.4 < answers[kind, "yes"] / kinds[kind] < 0.6


def test_questions_are_repeatable_and_of_the_kinds_asked_for() -> None:
    scene = sample_scene(0, "test", 3)
    first, again = (questions(scene, random_stream(0, "test", 3, "questions"), 6) for _ in range(2))
    assert first == again
    only = questions(scene, random_stream(0, "test", 3, "questions"), 3, kinds=("colour", "count"))
    assert {question.kind for question in only} <= {"colour", "count"}
    assert len(questions(scene, random_stream(0, "test", 3, "questions"), 5, kinds=("ground",))) == 1
    with pytest.raises(UserError, match=r'no questions of kind "color".*colour'):
        questions(scene, random_stream(0, "test", 3, "questions"), 1, kinds=("color",))


def test_answers_are_checked_by_meaning() -> None:
    count = Question("how many stars are there?", "count", "zero", ("zero", "0", "none", "no"))
    assert check_answer(count, "None.")
    assert check_answer(count, "0")
    assert not check_answer(count, "one")
    which = Question(
        "what is above the star?",
        "which",
        "red ring",
        ("red ring", "ring"),
        Phrase("ring", "red", "dotted", "small"),
    )
    for right in ("ring", "a red ring", "the small red ring with dots", "little dotted ring", "Spotted red ring"):
        assert check_answer(which, right), right
    for wrong in ("star", "red", "blue ring", "large red ring", "two rings", "a ring at the top", "ring ring", ""):
        assert not check_answer(which, wrong), wrong
    asked = questions(sample_scene(0, "train", 1), random_stream(0, "train", 1, "questions"), 1, kinds=("size",))
    assert check_answer(asked[0], "the big" if asked[0].answer == "large" else "tiny")
    with pytest.raises(UserError, match="not a question"):
        Question.from_dict({"text": "what?"})


def test_pair_labels_are_right_and_balanced() -> None:
    forms: Counter[tuple[str, bool]] = Counter()
    for index in range(160):
        pair = sample_pair(2, "train", index)
        assert pair_is_true(pair.text, pair.left, pair.right) == pair.label == (index % 2 == 0)
        forms[pair.form, pair.label] += 1
    assert len(forms) == 2 * len(PAIR_FORMS)
    assert sample_pair(2, "train", 7) == sample_pair(2, "train", 7)


def test_pair_statements_by_hand() -> None:
    star = Object("star", "red", "plain", "small", 0.3, 0.3, 0.12, 0.0, 0)
    moon = Object("moon", "red", "plain", "small", 0.7, 0.7, 0.12, 0.0, 1)
    one, two = Scene((star,), "sand"), Scene((star, moon), "sand")
    assert pair_is_true("Both pictures show a star.", one, two)
    assert pair_is_true("only one picture shows a moon", one, two)
    assert not pair_is_true("only one picture shows a star", one, two)
    assert pair_is_true("neither picture shows a ring", one, two)
    assert pair_is_true("the right picture has more red objects than the left picture", one, two)
    assert not pair_is_true("the left picture has more stars than the right picture", one, two)
    assert pair_is_true("the right picture shows a star above a moon", one, two)
    with pytest.raises(UserError, match="no statement about two images"):
        pair_is_true("a star", one, two)


def test_pairs_are_a_source() -> None:
    source = PairSource(num_samples=4, seed=1)
    left, right, pair = source[3]
    assert left.shape == right.shape == (64, 64, 3)
    assert (left != right).any()
    assert not pair.label
    with pytest.raises(IndexError):
        source[4]
    with pytest.raises(UserError, match="no split"):
        PairSource(split="dev")
